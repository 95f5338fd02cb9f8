"""From pictures to people: a file, or a float network, and everything around it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from itertools import chain, islice
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kvant.errors import FormatError, InputError
from kvant.pose.decode import decode_people
from kvant.pose.draw import Shown, draw_people
from kvant.pose.layout import Float32Array
from kvant.pose.maps import DecoderSettings, Maps
from kvant.pose.overlap import Item, Result, at_once
from kvant.pose.person import Person
from kvant.pose.pictures import as_picture
from kvant.pose.preprocess import Geometry, prepare, prepare_pixels
from kvant.pose.spec import NETWORKS, NetworkSpec, network_spec
from kvant.pose.yuv import AnyPicture, YuvPicture, known_picture
from kvant.runtime import QuantizedModel, load, native

if TYPE_CHECKING:
    import torch

Infer = Callable[[Float32Array], Any]
"""Runs a network: N x 3 x H x W float32 -> what `PoseOutput.split` takes (an array, or a sequence of two)."""

ONE_SCALE = (1.0,)
FOUR_SCALES = (0.5, 1.0, 1.5, 2.0)
"""The scales of OpenPose's original code: slower by a factor of 7.5, and better."""
MAX_SCALES = 16


class PoseEstimator:
    """Finds people in pictures.

    It may be shared by threads: they get what each would get alone.

    Args:
        model: a .kvant file's path, a model loaded by `kvant.load`, a float torch network, or any function that runs a
            network on N x 3 x H x W float32 arrays.
        network: what the network takes and returns: one of `NETWORKS` by name, or a `NetworkSpec`, which replaces
            what a file says. By default the file's metadata say it, or the class of a torch network of this package.
        height: pictures are scaled to this height, in pixels.
        scales: the network sees each picture at these multiples of `height`, and its maps are averaged: `ONE_SCALE` is
            fast, `FOUR_SCALES` finds more.
        settings: choices of the decoder.
        backend: of a file: "native" or "reference".
        memory_budget: of a file: bytes that its laid out weights may take, or "speed" for no bound; see `kvant.load`.
            Results are the same bits. `openpose-vgg` gains much by "speed", `openpose-mobilenet-thin` nothing.

    Raises:
        FormatError: the file is no .kvant file, or does not say which network it holds, and neither does `network`.
        InputError: `height` or `scales` have no meaning, nothing says which network a function or module is, or
            `network` is an unknown name, or that of another network than the file describes.

    >>> estimator = PoseEstimator("pose.kvant")  # doctest: +SKIP
    >>> people = estimator.detect(read_image("photo.jpg"))  # doctest: +SKIP
    >>> cv2.imwrite("people.jpg", estimator.draw(image, people))  # doctest: +SKIP
    """

    def __init__(
        self,
        model: str | PathLike[str] | QuantizedModel | torch.nn.Module | Infer,
        *,
        network: NetworkSpec | str | None = None,
        height: int = 368,
        scales: Sequence[float] = ONE_SCALE,
        settings: DecoderSettings | None = None,
        backend: str | None = None,
        memory_budget: int | Literal["speed"] | None = None,
    ) -> None:
        if isinstance(model, str | PathLike):
            model = load(model, backend=backend, memory_budget=memory_budget)
        self.model = model
        self.network = _network(model, network)
        self.height = height
        self.scales = tuple(scales)
        self.settings = settings or DecoderSettings()
        self.run = as_function(model)
        plain = (self.network.input.scale, self.network.input.offset) == (1, 0)
        self._takes_pixels = plain and isinstance(model, QuantizedModel) and model.takes_pixels
        check_sizes(height, self.scales, self.network.input.stride)

    def detect(self, image: AnyPicture) -> list[Person]:
        """Return the people in a picture, best first, in its coordinates.

        `image` is BGR, H x W x 3, uint8; grey, BGRA and a video's `YuvPicture` are understood too. Raises ImageError
        for any other array, InputError if the picture needs more memory than the model may take or the outputs are not
        the network's.

        >>> blank = lambda array: np.zeros((1, 57, array.shape[2] // 8, array.shape[3] // 8), np.float32)
        >>> PoseEstimator(blank, network="openpose-mobilenet-thin").detect(np.zeros((480, 640, 3), np.uint8))
        []
        """
        return decode_people(self.maps(image), self.settings)

    def detect_batch(self, images: Iterable[AnyPicture]) -> list[list[Person]]:
        """Return the people of each picture, see `each`; pictures may have different sizes."""
        return list(self.each(self.detect, images))

    def each(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result, None, None]:
        """Yield `function` of each of `items`, in their order, where `function` does one picture's work by `detect`.

        With a file on the native back end as many of them at once as `kvant.num_threads()`, each on a thread of its
        own, which takes less time than one after the other by all threads; if there are not so many, and with any
        other network, one after the other. An exception of `function` is raised in its turn, and ends it.

        >>> blank = lambda array: np.zeros((1, 57, array.shape[2] // 8, array.shape[3] // 8), np.float32)
        >>> estimator = PoseEstimator(blank, network="openpose-mobilenet-thin", height=64)
        >>> list(estimator.each(lambda side: len(estimator.detect(np.zeros((side, side, 3), np.uint8))), [64, 80]))
        [0, 0]
        """
        if not isinstance(self.model, QuantizedModel) or self.model.backend != "native":
            yield from at_once(function, items, workers=1)
            return
        workers, waiting = native.num_threads(), iter(items)
        first = list(islice(waiting, workers))
        if len(first) < workers:
            yield from map(function, first)
        else:
            yield from at_once(function, chain(first, waiting), workers, native.stay_on_thread)

    def maps(self, image: AnyPicture) -> list[Maps]:
        """Return the network's maps of a picture, one entry for each scale; `decode_people` takes them."""
        picture = known_picture(image)
        return [self._maps_at(picture, scale) for scale in self.scales]

    def prepare(self, image: AnyPicture, scale: float = 1.0) -> tuple[Any, Geometry]:
        """Return what `run` takes of a picture, as `kvant.pose.prepare` does, in uint8 where the file takes that."""
        prepared = prepare_pixels if self._takes_pixels else prepare
        return prepared(image, self.network, round(scale * self.height))

    def _maps_at(self, picture: AnyPicture, scale: float) -> Maps:
        array, geometry = self.prepare(picture, scale)
        outputs = self.run(array)
        try:
            heat, paf = self.network.output.split(outputs)
        except ValueError as error:
            raise InputError(f"the model's outputs are not those of {self.network.name}: {error}") from error
        size = tuple(side // geometry.stride for side in geometry.padded)
        if not heat.shape[2:] == paf.shape[2:] == size:
            raise InputError(
                f"the model gives maps of {heat.shape[2:]} and {paf.shape[2:]} cells for an input of "
                f"{geometry.padded} pixels; expected {size}, because {self.network.name} has stride {geometry.stride}"
            )
        return Maps(heat[0], paf[0], geometry)

    def draw(self, image: Shown, people: Sequence[Person], opacity: float = 0.7, out: Shown | None = None) -> Shown:
        """Return a copy of the picture, BGR, with the skeletons of `people` on it; see `draw_people`."""
        return draw_people(image if isinstance(image, YuvPicture) else as_picture(image), people, opacity, out)

    def __repr__(self) -> str:
        return f"PoseEstimator({self.network.name}, height={self.height}, scales={self.scales})"


def check_sizes(height: int, scales: tuple[float, ...], stride: int) -> None:
    """Raise InputError if a height and scales have no meaning."""
    if not 1 <= len(scales) <= MAX_SCALES:
        raise InputError(f"expected 1 to {MAX_SCALES} scales, got {len(scales)}")
    if not all(np.isfinite(scale) and round(scale * height) >= stride for scale in scales):
        raise InputError(f"height {height} at scales {scales}: every height must be at least {stride} pixels")


def _is_torch_module(model: object) -> bool:
    """Whether `model` is a torch.nn.Module; torch is never imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.Module)


def _network(model: Any, given: NetworkSpec | str | None) -> NetworkSpec:
    if isinstance(given, NetworkSpec):
        return given
    if given is not None:
        named = network_spec(given)
        if isinstance(model, QuantizedModel):
            _check_agrees(model, named)
        return named
    if isinstance(model, QuantizedModel):
        return NetworkSpec.from_metadata(model.metadata)
    for spec in NETWORKS.values():
        if _is_torch_module(model) and type(model).__name__ == spec.class_name:
            return spec
    raise InputError(
        f"nothing says which network {type(model).__name__} is: give network= one of {', '.join(NETWORKS)}, "
        "or a NetworkSpec"
    )


def _check_agrees(model: QuantizedModel, named: NetworkSpec) -> None:
    """Raise InputError if a file describes another network: what is found in the maps of one by another's rules is
    nonsense that nothing else tells from people."""
    try:
        described = NetworkSpec.from_metadata(model.metadata)
    except FormatError:
        return
    if described.name != named.name:
        raise InputError(
            f"the file says that it holds {described.name!r}, not {named.name!r}: leave the network out, or take "
            "another file (in Python a NetworkSpec replaces what a file says)"
        )
    if described != named:
        raise InputError(
            f"the file's {named.name!r} takes or returns something else than this package's: leave the network out, "
            f"the file is enough (it says {described.input}, {described.output})"
        )


def as_function(model: Any) -> Infer:
    """Return what runs `model` on arrays: itself, unless it is a torch network."""
    if not _is_torch_module(model):
        return model  # type: ignore[no-any-return]
    import torch

    def infer(array: Float32Array) -> list[Float32Array]:
        with torch.inference_mode():
            outputs = model(torch.from_numpy(array))
        return [output.numpy() for output in (outputs if isinstance(outputs, tuple | list) else (outputs,))]

    return infer
