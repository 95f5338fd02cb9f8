"""The page in a browser, as its visitors use it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import cv2
import numpy as np
import pytest

from kvant.pose import PageLimits, PageModels, PoseEstimator, network_spec
from kvant.pose.demo.pictures import video_pictures

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium here: apt-get install chromium", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="no Playwright here: pip install 'kvant[browser]'")
pytest.importorskip("gradio", reason="the page needs gradio: pip install 'kvant[web]'")

from .pages import HEIGHT, WIDTH, Counter, models, served  # noqa: E402

REPOSITORY = Path(__file__).resolve().parents[2]
DEMO = REPOSITORY / "build" / "demo"
# Without these, Chromium asks servers of its maker for this and that when it starts.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]  # fmt: skip


class Visit:
    """A browser's page, and everything it asked for."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.asked: list[str] = []
        self.failed: list[tuple[int, str]] = []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on(
            "response", lambda response: response.status >= 400 and self.failed.append((response.status, response.url))
        )

    def open(self) -> None:
        self.page.goto(self.address)
        self.page.wait_for_selector("input[type=file]", state="attached")

    def drop(self, path: Path) -> None:
        self.page.set_input_files("input[type=file]", str(path))

    def summary(self) -> list[str]:
        self.page.wait_for_selector("#summary table")
        return [cell.strip() for cell in self.page.locator("#summary td").all_inner_texts()]

    def pictures(self) -> list[np.ndarray]:
        """What lies on the left and on the right of the slider."""
        found = self.page.locator("#slider img")
        found.nth(1).wait_for()
        addresses = [found.nth(index).get_attribute("src") for index in range(2)]
        bodies = [self.page.request.get(address).body() for address in addresses]
        return [cv2.imdecode(np.frombuffer(body, np.uint8), cv2.IMREAD_COLOR) for body in bodies]

    def check_it_stayed_here(self) -> None:
        hosts = {urlsplit(url).netloc for url in self.asked if urlsplit(url).scheme in ("http", "https", "ws", "wss")}
        assert hosts == {urlsplit(self.address).netloc}
        assert self.failed == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def visit(browser: Any, address: str) -> Visit:
    context = browser.new_context(viewport={"width": 1280, "height": 760}, permissions=["camera"])
    context.set_default_timeout(60_000)
    return Visit(context.new_page(), address)


@pytest.fixture
def page(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visit]:
    """The page with the known person, open."""
    for name in ("GRADIO_TEMP_DIR", "GRADIO_EXAMPLES_CACHE", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")
    folder = tmp_path / "page"
    folder.mkdir()
    with served(models(Counter()), PageLimits(pixels=3_000_000), folder.resolve()) as address:
        found = visit(browser, address)
        found.open()
        yield found
        found.page.context.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "black.png"
    cv2.imwrite(str(path), np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    return path


def test_a_dropped_picture(page: Visit, picture: Path) -> None:
    page.drop(picture)
    cells = page.summary()
    assert cells[:3] == ["people", "1", "1"]
    assert cells[3] == "time" and cells[4].endswith(" ms") and cells[5].endswith(" ms")
    assert cells[6:] == ["size", "0.00 MB", "1.23 MB"]
    left, right = page.pictures()
    assert left.shape == right.shape == (HEIGHT, WIDTH, 3)
    assert left.max() > 100 and right.max() > 100 and (left != right).any()
    differences = page.page.locator("#differences").inner_text()
    assert "18 of 18" in differences
    page.check_it_stayed_here()


def test_the_slider_moves(page: Visit, picture: Path) -> None:
    page.drop(picture)
    page.summary()
    slider = page.page.locator("#slider")
    page.page.locator("#slider img").nth(1).wait_for()
    page.page.wait_for_timeout(500)
    before = slider.screenshot()
    box = slider.bounding_box()
    middle = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.page.mouse.move(*middle)
    page.page.mouse.down()
    page.page.mouse.move(middle[0] - box["width"] / 4, middle[1], steps=5)
    page.page.mouse.up()
    assert slider.screenshot() != before


def test_the_camera(page: Visit) -> None:
    page.page.get_by_label("Capture from camera").click()
    page.page.get_by_text("Click to Access Webcam").click()
    # What is captured before the first frame is there is an empty picture, which the page never sends.
    page.page.wait_for_function(
        "[...document.querySelectorAll('video')].some(video => video.videoWidth && !video.paused)"
    )
    page.page.get_by_label("capture photo").click()
    assert page.summary()[0] == "people"
    assert all(picture.max() > 100 for picture in page.pictures())
    page.check_it_stayed_here()


def test_a_broken_picture_is_explained(page: Visit, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    page.drop(tmp_path / "bad.png")
    page.page.get_by_text("The file is not a complete JPEG").wait_for()
    cv2.imwrite(str(tmp_path / "large.png"), np.zeros((3001, 1000, 3), np.uint8))
    page.page.get_by_label("Clear").or_(page.page.get_by_label("Remove")).first.click()
    page.drop(tmp_path / "large.png")
    page.page.get_by_text("has 1000 x 3001 pixels, more than").wait_for()


@pytest.mark.slow
def test_the_picture_of_the_documentation(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks and a frame of the demo. KVANT_PICTURES=docs/images writes the picture that the guide shows."""
    file, video = DEMO / "openpose_mobilenet_thin.kvant", DEMO / "sample_video.mp4"
    if not (file.exists() and video.exists()):
        pytest.skip("what the demo makes is not there: make demo")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    spec = network_spec("openpose-mobilenet-thin")
    shown = PageModels(PoseEstimator(spec.build(), network=spec), PoseEstimator(file), file.stat().st_size)
    [frame] = video_pictures(video).read([105])
    cv2.imwrite(str(tmp_path / "frame.png"), frame)
    folder = tmp_path / "page"
    folder.mkdir()
    with served(shown, PageLimits(), folder.resolve()) as address:
        found = visit(browser, address)
        found.open()
        found.drop(tmp_path / "frame.png")
        found.summary()  # what is measured first includes work that is done once
        found.page.get_by_label("Clear").or_(found.page.get_by_label("Remove")).first.click()
        found.page.locator("#summary table").wait_for(state="detached")
        found.drop(tmp_path / "frame.png")
        assert found.summary()[:3] == ["people", "2", "2"]
        found.pictures()
        found.page.wait_for_timeout(1500)
        screenshot = found.page.screenshot(type="jpeg", quality=88)
        found.check_it_stayed_here()
    target = Path(os.environ.get("KVANT_PICTURES", tmp_path))
    target.mkdir(parents=True, exist_ok=True)
    (target / "page.jpg").write_bytes(screenshot)
