"""A page that serves known people, in a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import uvicorn

from kvant.pose import PageLimits, PageModels, PoseEstimator
from kvant.pose.server import guarded_page, open_socket

from .scenes import render, standing

HEIGHT, WIDTH = 96, 128
KNOWN = standing(30, 4, 44, 88)
NETWORK = "openpose-mobilenet-thin"


class Counter:
    """Sees the known person, and counts how many look at once."""

    def __init__(self) -> None:
        self.lock, self.now, self.most, self.calls = threading.Lock(), 0, 0, 0

    def __call__(self, array: np.ndarray) -> np.ndarray:
        with self.lock:
            self.now, self.calls = self.now + 1, self.calls + 1
            self.most = max(self.most, self.now)
        time.sleep(0.02)
        with self.lock:
            self.now -= 1
        return np.concatenate(render([KNOWN], *array.shape[2:]), axis=0)[np.newaxis]


class FloatNetwork(torch.nn.Module):
    """Sees the known person two pixels to the right; it has one weight of 4 bytes and none that matters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        moved = KNOWN + np.float32([2, 0, 0])
        return torch.from_numpy(np.concatenate(render([moved], *image.shape[2:]), axis=0)[np.newaxis])


def models(network: Counter) -> PageModels:
    """A float network and what stands for the file made of it."""
    return PageModels(
        PoseEstimator(FloatNetwork(), network=NETWORK, height=HEIGHT),
        PoseEstimator(network, network=NETWORK, height=HEIGHT),
        1_230_000,
    )


@contextmanager
def served(shown: PageModels, limits: PageLimits, folder: Path) -> Iterator[str]:
    """The address of the page, which ends with the block."""
    with open_socket("127.0.0.1", 0) as listening:
        app = guarded_page(shown, limits, folder, loopback=True)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(20)
