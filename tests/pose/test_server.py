"""The page's server: what it answers, and what it does not."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from kvant.errors import InputError
from kvant.pose import PageLimits
from kvant.pose.server import guarded_page, is_loopback, open_socket

pytest.importorskip("gradio", reason="the page needs gradio: pip install 'kvant[web]'")
from fastapi.testclient import TestClient
from gradio_client import Client, handle_file

from .pages import HEIGHT, WIDTH, Counter, models, served

LIMITS = PageLimits(upload_bytes=200_000, pixels=100_000)
NETWORK = Counter()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page").resolve()


@pytest.fixture(scope="module")
def page(folder: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "GRADIO_TEMP_DIR",
            "GRADIO_EXAMPLES_CACHE",
            "GRADIO_ANALYTICS_ENABLED",
            "HF_HUB_DISABLE_TELEMETRY",
        ):
            patch.setenv(name, "")  # and back to what it was
        with served(models(NETWORK), LIMITS, folder) as address:
            yield address


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "black.png"
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return path


def ask(page: str, path: str, method: str = "GET", body: Any = None, **headers: str) -> tuple[int, bytes]:
    """One request, exactly as it is written here: nothing makes its path tidy."""
    connection = http.client.HTTPConnection(page.removeprefix("http://"), timeout=20)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read()


def predict(page: str, path: Path, folder: Path) -> Any:
    client = Client(page, verbose=False, download_files=folder, analytics_enabled=False)
    return client.predict(handle_file(path), api_name="/find")


def test_a_picture(page: str, picture: Path, folder: Path, tmp_path: Path) -> None:
    pair, summary, table = predict(page, picture, tmp_path)
    assert "| people | 1 | 1 |" in summary
    assert "| size | 0.00 MB | 1.23 MB |" in summary
    [row] = table["data"]
    assert row[:4] == ["1", "18", "18", "18 of 18"]
    assert float(row[4]) == pytest.approx(2, abs=0.6)
    drawn = [cv2.imread(path) for path in pair]
    assert [each.shape for each in drawn] == [(HEIGHT, WIDTH, 3)] * 2
    assert all(each.max() > 100 for each in drawn) and (drawn[0] != drawn[1]).any()
    assert len(list(folder.glob("*.jpg"))) >= 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no picture", "The file is not a complete JPEG"),
        (cv2.imencode(".png", np.zeros((300, 400, 3), np.uint8))[1].tobytes(), "has 400 x 300 pixels, more than"),
        (cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()[:60], "The file is damaged"),
    ],
)
def test_pictures_that_are_refused(
    page: str, content: bytes, message: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(Exception, match=message) as caught:
        predict(page, tmp_path / "bad.png", tmp_path)
    assert str(folder) not in str(caught.value)
    assert "Traceback" not in capsys.readouterr().err


def test_files_that_are_too_large(page: str, tmp_path: Path) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n%s\r\n--x--\r\n'
    kind = "multipart/form-data; boundary=x"
    assert ask(page, "/gradio_api/upload", "POST", form % bytes(100_000), content_type=kind)[0] == 200
    assert ask(page, "/gradio_api/upload", "POST", form % bytes(230_000), content_type=kind)[0] == 413
    # In pieces, so that no header tells how much will come.
    assert ask(page, "/gradio_api/upload", "POST", iter([form % bytes(2_000_000)]), content_type=kind)[0] == 413
    assert ask(page, "/gradio_api/queue/join", "POST", iter([bytes(70_000)]), content_type="application/json")[0] == 413
    assert ask(page, "/gradio_api/queue/join", "POST", bytes(70_000), content_type="application/json")[0] == 413


PASSWORDS = "/etc/passwd"
UP = ("../", "%2e%2e/", "..%2f", "%252e%252e/")
REACHING = [
    *(f"/gradio_api/file={name}" for name in (PASSWORDS, f"/{PASSWORDS}", f"..{PASSWORDS}", f"file://{PASSWORDS}")),
    "/gradio_api/file=http://127.0.0.1/",
    "/gradio_api/file=%2Fetc%2Fpasswd",
    "/gradio_api/file=FOLDER/../../../../..%2Fetc/passwd",
    "/gradio_api/file=FOLDER/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
    "/gradio_api/file=FOLDER%5c..%5c..%5cetc%5cpasswd",
    "/gradio_api/file=FOLDERother/a.png",
    "/gradio_api/file=pyproject.toml",
    "/gradio_api/file=FOLDER/%00",
    "/gradio_api/file/etc/passwd",
    "/file=/etc/passwd",
    *(f"/{place}/{12 * up}etc/passwd" for place in ("static", "assets", "svelte") for up in UP),
    "/assets//etc/passwd",
    "/static//etc/passwd",
    "/gradio_api/proxy=http://127.0.0.1:22/",
    "/gradio_api/custom_component/a/client/component/..%2f..%2fpyproject.toml",
    "/gradio_api/runs",
    "/gradio_api/vibe-code",
    "/monitoring",
    "/docs",
    "/openapi.json",
]  # fmt: skip


@pytest.mark.parametrize("path", REACHING)
def test_nothing_of_the_machine_can_be_reached(page: str, folder: Path, path: str) -> None:
    status, body = ask(page, path.replace("FOLDER", str(folder)))
    assert status in (400, 403, 404, 405), body[:200]
    assert b"root:" not in body and b"[project]" not in body


def test_a_path_instead_of_an_upload_is_refused(page: str, folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    cv2.imwrite(str(secret), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    for given in ({"path": str(secret)}, {"path": secret.name}, {"path": PASSWORDS}, {"path": "http://127.0.0.1/"}):
        data = {"meta": {"_type": "gradio.FileData"}, "orig_name": "a.png", **given}
        call = json.dumps({"data": [data], "fn_index": 0, "session_hash": "abc"})
        calls = NETWORK.calls
        assert ask(page, "/gradio_api/queue/join", "POST", call, content_type="application/json")[0] == 403
        assert NETWORK.calls == calls
    assert not list(folder.rglob("secret.png")) and not list(folder.rglob("passwd"))


def test_gradio_itself_refuses_paths_too(folder: Path, tmp_path: Path) -> None:
    """Behind the guard there is a second lock: Gradio's own, which is open where a page is mounted without a word."""
    secret = tmp_path / "secret.png"
    cv2.imwrite(str(secret), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    app = guarded_page(models(Counter()), LIMITS, folder, loopback=True).app
    with TestClient(app) as client:
        data = {"meta": {"_type": "gradio.FileData"}, "path": str(secret)}
        call = {"data": [data], "fn_index": 0, "session_hash": "abc"}
        assert client.post("/gradio_api/queue/join", json=call).status_code == 200
        events = client.get("/gradio_api/queue/data", params={"session_hash": "abc"}).text
    assert '"success":false' in events
    assert not list(folder.rglob("secret.png"))


@pytest.mark.parametrize(
    "body", [b"{", b"[" * 60_000, b"\x80", b'{"data": [[{"path": 3}]]}', b'{"path": ["/etc/passwd"]}']
)
def test_calls_that_are_none(page: str, body: bytes) -> None:
    assert ask(page, "/gradio_api/queue/join", "POST", body, content_type="application/json")[0] == 403


def test_other_sites_are_refused(page: str) -> None:
    assert ask(page, "/")[0] == 200
    own = page.removeprefix("http://")
    for host in ("evil.example", "[bad", "localhost.evil.example", "evil.example:80@localhost.", ""):
        assert ask(page, "/", Host=host)[0] == 421
    assert ask(page, "/", Host=f"localhost:{own.split(':')[1]}")[0] == 200
    for origin in ("http://evil.example", "null", f"http://{own}.evil.example", "http://[bad", ""):
        assert ask(page, "/gradio_api/queue/join", "POST", b"{}", Origin=origin)[0] == 403
    assert ask(page, "/config", Origin=page)[0] == 200
    for method in ("PUT", "DELETE", "OPTIONS", "TRACE"):
        assert ask(page, "/", method)[0] == 405


def test_browsers_are_told_to_stay_here(page: str) -> None:
    connection = http.client.HTTPConnection(page.removeprefix("http://"), timeout=20)
    connection.request("GET", "/")
    answer = connection.getresponse()
    policy = answer.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    html = answer.read().decode()
    assert "fonts.googleapis.com" not in html and "cdnjs" not in html
    config = json.loads(ask(page, "/config")[1])
    assert config["analytics_enabled"] is False


def test_visitors_share_one_model_and_get_the_same(page: str, picture: Path, tmp_path: Path) -> None:
    def visit(number: int) -> Any:
        folder = tmp_path / str(number)
        folder.mkdir()
        pair, _, table = predict(page, picture, folder)
        return [cv2.imread(path).tobytes() for path in pair], table["data"]

    calls = NETWORK.calls
    with ThreadPoolExecutor(6) as visitors:
        found = list(visitors.map(visit, range(6)))
    assert all(each == found[0] for each in found)
    assert NETWORK.calls == calls + 6
    assert NETWORK.most <= 2


def test_addresses() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.1", "example.com")))
    with open_socket("127.0.0.1", 0) as taken, pytest.raises(InputError, match=r"cannot listen at 127\.0\.0\.1, port"):
        open_socket("127.0.0.1", taken.getsockname()[1])
    for host in ("..", "a" * 300, "999.1.1.1", ""):
        with pytest.raises(InputError, match="choose another --port or --host"):
            open_socket(host, 0)
    with pytest.raises(InputError, match="choose another --port"):
        open_socket("203.0.113.7", 0)


SERVE = """
import sys, warnings
sys.path.insert(0, sys.argv[1])
from tests.pose.pages import Counter, models
from kvant.pose import PageLimits, serve_page
serve_page(models(Counter()), PageLimits(), sys.argv[2], int(sys.argv[3]), lambda address: print(address, flush=True))
"""


@contextmanager
def serving(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that serves the page, and its port; its temporary files lie in `tmp_path`."""
    line = [sys.executable, "-c", SERVE, str(Path(__file__).parents[2]), "127.0.0.1", "0"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert address.startswith("http://127.0.0.1:")
    assert any(path.name.startswith("kvant-pose-") for path in tmp_path.iterdir())
    yield process, int(address.rpartition(":")[2])
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr) == (0, "")
    assert not [path.name for path in tmp_path.iterdir() if "gradio" in path.name or "kvant" in path.name]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_end_leaves_nothing(number: int, tmp_path: Path) -> None:
    with serving(tmp_path) as (process, port), socket.create_connection(("127.0.0.1", port), timeout=5):
        process.send_signal(number)
        process.wait(30)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("count", [1, 2])
def test_the_end_cuts_an_upload_short(count: int, tmp_path: Path) -> None:
    """After a second, or at once with the second Ctrl-C; in either case nothing is said of it."""
    head = b"POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    with serving(tmp_path) as (process, port), socket.create_connection(("127.0.0.1", port), timeout=5) as upload:
        upload.sendall(head + b"Content-Length: 10000\r\n\r\n--x\r\n")
        time.sleep(0.3)
        for _ in range(count):
            process.send_signal(signal.SIGINT)
            time.sleep(0.1)
        process.wait(30)


def test_an_open_address_is_warned_of(tmp_path: Path) -> None:
    with open_socket("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        line = [sys.executable, "-c", SERVE, str(Path(__file__).parents[2]), "0.0.0.0", port]
        done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert "everyone who can reach 0.0.0.0 can use this page" in done.stderr
    assert "choose another --port" in done.stderr


def test_without_gradio(tmp_path: Path) -> None:
    code = "import sys; sys.modules['gradio'] = None\n" + SERVE
    line = [sys.executable, "-c", code, str(Path(__file__).parents[2]), "127.0.0.1", "0"]
    done = subprocess.run(line, capture_output=True, text=True, check=False, timeout=60)
    assert "pip install 'kvant[web]'" in done.stderr
