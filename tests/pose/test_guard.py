"""The guard before the page's server, beside an application that only says that it was asked."""

from __future__ import annotations

import asyncio
from pathlib import Path

from kvant.pose.guard import UPLOAD, Guard, Message, Receive, Scope, Send

LARGEST = 1000


def status(guard: Guard, body: bytes = b"picture", length: bytes | None = None) -> int:
    """The answer to an upload, of so many bytes as it says itself."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), *([] if length is None else [(b"content-length", length)])]
    scope = {"type": "http", "method": "POST", "path": UPLOAD, "headers": headers}
    asyncio.run(guard(scope, receive, send))
    return int(sent[0]["status"])


async def answers(scope: Scope, receive: Receive, send: Send) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200})


def test_no_more_files_are_taken_than_the_folder_may_hold(tmp_path: Path) -> None:
    guard = Guard(answers, tmp_path, LARGEST, loopback=True)
    assert status(guard) == 200
    (tmp_path / "deep").mkdir()
    kept = tmp_path / "deep" / "kept"
    kept.write_bytes(bytes(49 * LARGEST))
    assert status(guard) == 200
    kept.write_bytes(bytes(49 * LARGEST + 1))
    assert status(guard) == 507
    kept.unlink()
    assert status(guard) == 200


def test_uploads_on_their_way_count(tmp_path: Path) -> None:
    found: list[int] = []

    async def asks_again(scope: Scope, receive: Receive, send: Send) -> None:
        if len(found) < 60:
            sent: list[Message] = []

            async def keep(message: Message) -> None:
                sent.append(message)

            found.append(0)
            place = len(found) - 1
            await guard(scope, receive, keep)
            found[place] = int(sent[0]["status"])
        await answers(scope, receive, send)

    guard = Guard(asks_again, tmp_path, LARGEST, loopback=True)
    assert status(guard) == 200
    assert found.count(507) == 1 and len(found) == 50  # the fiftieth within forty-nine others and the first
    assert status(guard) == 200  # all have come: there is room again


def test_a_file_that_is_too_large(tmp_path: Path) -> None:
    guard = Guard(answers, tmp_path, LARGEST, loopback=True)
    assert status(guard, bytes(LARGEST + 64_001)) == 413
    assert status(guard, length=b"7") == 200
    for length in (b"%d" % (LARGEST + 64_001), b"9" * 5000, b"-1", b"seven"):
        assert status(guard, length=length) == 413
