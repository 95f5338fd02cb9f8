"""What may be asked of the page's server: everything else is refused before Gradio sees it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

API = "/gradio_api"
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


class Guard:
    """An ASGI application before another one.

    Args:
        app: what is guarded.
        folder: the only folder of which files are handed out.
        upload_bytes: the largest file that may be sent.
        loopback: only requests to this machine's own names are answered: a page of someone else's that makes a browser
            resolve its own name to this machine (DNS rebinding) asks for another one.
    """

    def __init__(self, app: App, folder: Path, upload_bytes: int, loopback: bool) -> None:
        self.app, self.folder, self.upload_bytes, self.loopback = app, folder, upload_bytes, loopback

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
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message.get("headers", ()), *_HEADERS]
            await send(message)

        try:
            await self.app(scope, self._counted(scope, receive), send_on)
        except TooLarge:
            if not started:
                await _answer(send, 413, "more was sent than is allowed")

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and reason, or None for what may pass."""
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.loopback and urlsplit(f"//{host}").hostname not in LOOPBACK:
            return 421, "this server answers to its own name only"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "requests of other sites are refused"
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return 405, "GET, HEAD and POST only"
        if not self._is_known(scope["path"]):
            return 404, "no such page"
        length = headers.get(b"content-length", "0")
        if not length.isdecimal() or int(length) > self._most_bytes(scope["path"]):
            return 413, "more was sent than is allowed"
        return None

    def _is_known(self, path: str) -> bool:
        if ".." in path or "\\" in path or "\0" in path:
            return False
        file = path.removeprefix(f"{API}/file=")
        if file != path:
            return file.startswith(f"{self.folder}/")
        return path in _PAGES or path in _CALLS or path.startswith(_FOLDERS)

    def _most_bytes(self, path: str) -> int:
        return self.upload_bytes + _UPLOAD_EXTRA if path == f"{API}/upload" else _CALL_BYTES

    def _counted(self, scope: Scope, receive: Receive) -> Receive:
        """A body may come in pieces, without a length that says how much it is."""
        left = self._most_bytes(scope["path"])

        async def receive_on() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLarge
            return message

        return receive_on


async def _answer(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
