"""The server of the page: a socket, a folder of its own, and an end."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from kvant.errors import InputError, MissingDependencyError
from kvant.pose.guard import LOOPBACK, Guard

if TYPE_CHECKING:
    from kvant.pose.estimator import PoseEstimator

_LAST_SECONDS = 1  # for answers that are under way when the server ends


@dataclass(frozen=True)
class PageLimits:
    """What visitors may send: bytes of a file, pixels of a picture."""

    upload_bytes: int = 20_000_000
    pixels: int = 40_000_000


@dataclass(frozen=True)
class PageModels:
    """The models that all visitors share: a float torch network, the file made of it, and that file's size."""

    reference: PoseEstimator
    estimator: PoseEstimator
    file_bytes: int


def serve_page(
    models: PageModels,
    limits: PageLimits,
    host: str = "127.0.0.1",
    port: int = 7860,
    ready: Callable[[str], None] = print,
) -> None:
    """Serve the page until Ctrl-C or SIGTERM.

    Args:
        models: what visitors use, all of them the same.
        host: the address to listen at; with one of the loopback only this machine can reach the page.
        port: 0 takes a free one.
        ready: called with the page's address once it can be opened.

    Raises:
        InputError: the address cannot be used.
        MissingDependencyError: Gradio is missing.
    """
    if not is_loopback(host):
        warnings.warn(f"everyone who can reach {host} can use this page; it asks for no password", stacklevel=2)
    with open_socket(host, port) as listening, tempfile.TemporaryDirectory(prefix="kvant-pose-") as name:
        folder = Path(os.path.realpath(name))
        app = guarded_page(models, limits, folder, is_loopback(host))
        shown = f"[{host}]" if ":" in host else host
        _run(app, listening, lambda: ready(f"http://{shown}:{listening.getsockname()[1]}"))


def guarded_page(models: PageModels, limits: PageLimits, folder: Path, loopback: bool) -> Guard:
    """The page as an ASGI application; what is uploaded and drawn lies in `folder`."""
    _private_folder(folder)
    try:
        from kvant.pose.web import build_page, mount
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise MissingDependencyError(f"the page needs {error.name}: pip install 'kvant[web]'") from error
    return Guard(mount(build_page(models, limits, folder), limits), folder, limits.upload_bytes, loopback)


def _private_folder(folder: Path) -> None:
    """Make Gradio keep its files in `folder` alone, and talk to nobody; before it is imported.

    By default it shares one folder with every other Gradio program of the machine, whoever runs that, and reports its
    use.
    """
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    os.environ["GRADIO_EXAMPLES_CACHE"] = str(folder / "examples")
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`.

    >>> is_loopback("localhost"), is_loopback("0.0.0.0")
    (True, False)
    """
    try:
        return host in LOOPBACK or ip_address(host).is_loopback
    except ValueError:
        return False


def open_socket(host: str, port: int) -> socket.socket:
    """A socket that listens; raises InputError if the address cannot be used."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, UnicodeError) as error:  # the latter of what is no name at all, such as ".."
        reason = error.strerror if isinstance(error, OSError) else "this is no address"
        raise InputError(f"cannot listen at {host}, port {port}: {reason}; choose another --port or --host") from error


def _run(app: Guard, listening: socket.socket, ready: Callable[[], None]) -> None:
    import uvicorn

    class Server(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """uvicorn raises the signal again when all is closed; here the signal has done its work by then."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            """Answers that the end cuts short are no errors: uvicorn would show where each was."""
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            super().handle_exit(sig, frame)

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

    config = uvicorn.Config(
        app, log_level="warning", ws="none", timeout_graceful_shutdown=_LAST_SECONDS, server_header=False
    )
    Server(config).run(sockets=[listening])
