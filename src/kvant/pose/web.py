"""The page of ``kvant pose serve``: a picture in, skeletons of float and int8 beside each other out."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import gradio as gr
import numpy as np

from kvant.errors import KvantError
from kvant.pose.compare import COMPARISON_COLUMNS, Comparison, compare_estimators
from kvant.pose.pictures import Picture, read_image
from kvant.pose.server import PageLimits, PageModels

_SHOWN = 1280  # most pixels of a side of the pictures shown: enough for a screen, soon encoded and sent
_WAITING = 32  # requests that may wait; who comes after them is told so
_AT_ONCE = 2
_KEEP_SECONDS = 600  # uploaded and drawn pictures are deleted after this


def build_page(models: PageModels, limits: PageLimits, folder: Path) -> gr.Blocks:
    """Return the page; its pictures lie in `folder`, the one that Gradio was told to keep its files in."""

    def find(path: str | None) -> tuple[Any, str, list[list[str]]]:
        if path is None:
            return None, "", []
        try:
            picture = read_image(path, limits.pixels)
            found = compare_estimators(models.reference, models.estimator, picture)
        except KvantError as error:
            # The file's name is one that the server made up.
            message = str(error).replace(path, "The file")
            raise gr.Error(message, duration=None, print_exception=False) from error
        pair = (models.reference.draw(picture, found.reference), models.estimator.draw(picture, found.other))
        rows = [entry.row() for entry in found.differences]
        return tuple(_write(_to_screen(drawn), folder) for drawn in pair), _summary(models, found, picture), rows

    page = gr.Blocks(title="kvant pose", analytics_enabled=False, delete_cache=(60, _KEEP_SECONDS))
    with page:
        gr.Markdown(
            f"# kvant pose\n{models.estimator.network.name}, in float32 on the left and as int8 file on the right. "
            f"The machine that runs this page keeps pictures for {_KEEP_SECONDS // 60} minutes and sends them nowhere."
        )
        with gr.Row():
            with gr.Column(scale=1):
                picture = gr.Image(
                    label="Picture",
                    sources=["upload", "webcam", "clipboard"],
                    type="filepath",
                    image_mode=None,
                    height=300,
                )
                # kvant reads the file itself, with its own limits.
                picture.preprocess = _path_of  # type: ignore[method-assign]
                summary = gr.Markdown(elem_id="summary")
            with gr.Column(scale=2):
                slider = gr.ImageSlider(
                    label="float32 | int8",
                    type="filepath",
                    interactive=False,
                    buttons=["fullscreen"],
                    max_height=640,
                    elem_id="slider",
                )
        table = gr.Dataframe(
            headers=list(COMPARISON_COLUMNS), label="Person by person", interactive=False, elem_id="differences"
        )
        picture.change(
            find, picture, [slider, summary, table], concurrency_limit=_AT_ONCE, api_name="find", show_progress="full"
        )
    page.queue(max_size=_WAITING)
    return page


def _path_of(payload: Any) -> str | None:
    return None if payload is None else payload.path


def _to_screen(picture: Picture) -> Picture:
    scale = min(1.0, _SHOWN / max(picture.shape[:2]))
    if scale < 1:
        size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)
    return picture


def _write(picture: Picture, folder: Path) -> str:
    """A file of its own for each visitor: Gradio would give two who see the same one file, and write it twice."""
    path = folder / f"{secrets.token_hex(16)}.jpg"
    path.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    return str(path)


def _summary(models: PageModels, found: Comparison, picture: Picture) -> str:
    height, width = picture.shape[:2]
    rows: Sequence[tuple[str, str, str]] = (
        ("people", str(len(found.reference)), str(len(found.other))),
        ("time", f"{found.reference_ms:.0f} ms", f"{found.other_ms:.0f} ms"),
        ("size", f"{_weight_bytes(models.reference.model) / 1e6:.2f} MB", f"{models.file_bytes / 1e6:.2f} MB"),
    )
    lines = [f"| {width} x {height} | float32, torch | int8, kvant |", "| --- | --- | --- |"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def _weight_bytes(model: Any) -> int:
    """What the weights of a torch network take."""
    return sum(value.numel() * value.element_size() for value in model.state_dict().values())


def mount(page: gr.Blocks, limits: PageLimits) -> Any:
    """Return the page as an ASGI application, everything switched off that it does not need."""
    import fastapi

    # Gradio looks where files lie that are sent as paths only if a page was launched; this one is mounted.
    page.has_launched = True
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gr.mount_gradio_app(
        app,
        page,
        path="",
        footer_links=[],
        run_history=False,
        allowed_paths=[],
        show_error=False,
        max_file_size=limits.upload_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css="#summary table { width: 100%; }",
    )
