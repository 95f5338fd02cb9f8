"""What may be asked of the page's server: everything else is refused before Gradio sees it."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
UPLOAD = f"{API}/upload"
_FILE = f"{API}/file="
_CLIMBING = ("..", "\\", "\0")
_TOO_MUCH = "more was sent than is allowed"
# What the page asks for while it is used; found by watching a browser.
_PAGES = frozenset({"/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt"})
_FOLDERS = ("/assets/", "/static/", "/svelte/", f"{API}/heartbeat/")
_CALLS = frozenset(
    f"{API}/{name}"
    for name in (
        "app_id", "cancel", "info", "queue/data", "queue/join", "reset", "startup-events", "upload", "upload_progress",
    )
)  # fmt: skip
_CALL_BYTES = 64_000  # of what is sent to anything but /upload
_UPLOAD_EXTRA = 64_000  # what a form adds to the file in it
_MOST_KEPT = 50  # files of the largest size that may lie there at a time: they are deleted after some minutes only
LOOPBACK = ("127.0.0.1", "localhost", "::1")

# The page must work without a network, and without telling anyone who looks at it.
_POLICY = (
    b"default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    b"img-src 'self' data: blob:; media-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; "
    b"object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
)


class TooLarge(Exception):
    """More was sent than is allowed."""


class Counted:
    """A body of which no more than `left` bytes are taken: it may come in pieces, and not say how much it is."""

    def __init__(self, receive: Receive, left: int) -> None:
        self.receive, self.left = receive, left

    async def __call__(self) -> Message:
        message = await self.receive()
        self.left -= len(message.get("body", b""))
        if self.left < 0:
            raise TooLarge
        return message


class Guard:
    """An ASGI application before another one.

    Args:
        app: what is guarded.
        folder: the only folder of which files are handed out.
        upload_bytes: the largest file that may be sent; more are taken while `folder` has room for 50 such ones.
        loopback: only requests to this machine's own names are answered: a page of someone else's that makes a browser
            resolve its own name to this machine (DNS rebinding) asks for another one.
    """

    def __init__(self, app: App, folder: Path, upload_bytes: int, loopback: bool) -> None:
        self.app, self.folder, self.upload_bytes, self.loopback = app, folder, upload_bytes, loopback
        self._coming = 0  # bytes that uploads on their way may still bring

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # a websocket that nobody accepts is closed by the server
        refusal = self._refusal(scope)
        if refusal is not None:
            await _answer(send, *refusal)
            return
        body = Counted(receive, self._most_bytes(scope["path"]))
        if scope["method"] == "POST" and scope["path"] == UPLOAD:
            await self._keep(scope, body, send)
        elif scope["method"] == "POST":
            await self._call(scope, body, send)
        else:
            await self._pass_on(scope, body, body, send)

    async def _keep(self, scope: Scope, body: Counted, send: Send) -> None:
        """An upload, if there is room for the largest one."""
        if _bytes_in(self.folder) + self._coming + self.upload_bytes > _MOST_KEPT * self.upload_bytes:
            await _answer(send, 507, "too many files are kept for now; try again in some minutes")
            return
        self._coming += self.upload_bytes
        try:
            await self._pass_on(scope, body, body, send)
        finally:
            self._coming -= self.upload_bytes

    async def _call(self, scope: Scope, body: Counted, send: Send) -> None:
        """A call names files; the whole of it is looked at before Gradio sees it."""
        try:
            content = await _read(body)
        except TooLarge:
            await _answer(send, 413, _TOO_MUCH)
            return
        if self._names_uploads_only(content):
            await self._pass_on(scope, _replay(content, body.receive), body, send)
        else:
            await _answer(send, 403, "only uploaded files can be named")

    async def _pass_on(self, scope: Scope, receive: Receive, body: Counted, send: Send) -> None:
        started = refused = False

        async def send_on(message: Message) -> None:
            nonlocal started, refused
            if message["type"] == "http.response.start":
                # Gradio takes a body that was cut off for a mistake of its own.
                refused = body.left < 0 and not started
                started = True
                if refused:
                    await _answer(send, 413, _TOO_MUCH)
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if not refused:
                await send(message)

        try:
            await self.app(scope, receive, send_on)
        except TooLarge:
            if not started:
                await _answer(send, 413, _TOO_MUCH)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, or None for what may pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.loopback and _split(f"//{host}").hostname not in LOOPBACK:
            return 421, "this server answers to its own name only"
        origin = headers.get(b"origin")
        if origin is not None and _split(origin).netloc != host:
            return 403, "requests of other sites are refused"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "GET, HEAD and POST only"
        if not self._is_known(scope["path"]):
            return 404, "no such page"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or len(length) > 18 or int(length) > self._most_bytes(scope["path"]):
            return 413, _TOO_MUCH
        return None

    def _is_known(self, path: str) -> bool:
        if any(mark in path for mark in _CLIMBING):
            return False
        if path.startswith(_FILE):
            return self._is_own(path.removeprefix(_FILE))
        return path in _PAGES or path in _CALLS or path.startswith(_FOLDERS)

    def _is_own(self, file: str) -> bool:
        return file.startswith(f"{self.folder}/") and not any(mark in file for mark in _CLIMBING)

    def _names_uploads_only(self, content: bytes) -> bool:
        """Gradio copies any file whose path is sent to where it can be asked for, if a page is mounted."""
        try:
            pending = [json.loads(content or b"null")]
        except (ValueError, RecursionError):
            return False
        while pending:
            value = pending.pop()
            if isinstance(value, dict):
                path = value.get("path")
                if path is not None and not (isinstance(path, str) and self._is_own(path)):
                    return False
            if isinstance(value, dict | list):
                pending += value.values() if isinstance(value, dict) else value
        return True

    def _most_bytes(self, path: str) -> int:
        return self.upload_bytes + _UPLOAD_EXTRA if path == UPLOAD else _CALL_BYTES


def _bytes_in(folder: Path) -> int:
    total = 0
    for file in folder.rglob("*"):
        with suppress(OSError):  # files are deleted meanwhile
            total += file.stat().st_size if file.is_file() else 0
    return total


def _split(address: str) -> SplitResult:
    """Its parts; none of an address that is not well formed."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


async def _read(receive: Receive) -> bytes:
    """The whole body."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body again, then whatever comes: that the visitor has left, for example."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_on() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_on


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
