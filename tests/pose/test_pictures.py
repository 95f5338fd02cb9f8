"""Pictures are read as people have them; PIL writes them, and turns them, for comparison."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from kvant.errors import ImageError
from kvant.pose import decode_image, find_pictures, pictures, read_image
from kvant.pose.headers import exif_orientation, picture_size

ORIENTATION = 274
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def gradient(height: int = 6, width: int = 10) -> np.ndarray:
    values = np.arange(height * width * 3) * 255 // (height * width * 3 - 1)
    return values.reshape(height, width, 3).astype(np.uint8)


def encode(array: np.ndarray, kind: str, **options: object) -> bytes:
    """A picture file of an RGB, RGBA or grey array, written by PIL."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, picture: np.ndarray) -> Path:
    assert cv2.imwrite(str(path), picture)
    return path


class TestPixels:
    @pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
    def test_colour(self, kind: str) -> None:
        np.testing.assert_array_equal(decode_image(encode(gradient(), kind)), gradient()[:, :, ::-1])

    @pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
    def test_colour_with_loss(self, kind: str) -> None:
        smooth = np.broadcast_to(np.linspace(0, 255, 64).astype(np.uint8)[:, None, None], (64, 64, 3))
        found = decode_image(encode(smooth, kind))
        assert np.abs(found.astype(int) - smooth).max() <= 8

    def test_grey_becomes_bgr(self) -> None:
        grey = gradient()[:, :, 0]
        np.testing.assert_array_equal(decode_image(encode(grey, "PNG")), np.repeat(grey[:, :, np.newaxis], 3, axis=2))

    @pytest.mark.parametrize("suffix", [".png", ".tiff"])
    @pytest.mark.parametrize("shape", [(6, 10), (6, 10, 3)])
    def test_sixteen_bits_become_eight(self, suffix: str, shape: tuple[int, ...], tmp_path: Path) -> None:
        eight = gradient() if len(shape) == 3 else gradient()[:, :, 1]
        picture = read_image(write(tmp_path / f"a{suffix}", eight.astype(np.uint16) * 257))
        assert (picture.dtype, picture.shape) == (np.uint8, (6, 10, 3))
        assert np.abs(picture.astype(int) - eight.reshape(6, 10, -1)).max() <= 1

    @pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535)])
    def test_transparent_parts_are_white(self, dtype: type, top: int, tmp_path: Path) -> None:
        picture = np.zeros((4, 4, 4), dtype)
        picture[:, :2, 3] = top
        read = read_image(write(tmp_path / "a.png", picture))
        assert (read.shape, read.dtype) == ((4, 4, 3), np.uint8)
        assert (read[:, :2] == 0).all() and (read[:, 2:] == 255).all()

    @pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
    def test_what_is_half_transparent_is_half_white(self, kind: str) -> None:
        picture = np.random.default_rng(0).integers(0, 256, (300, 1000, 4), dtype=np.uint8)
        options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
        alpha = picture[:, :, 3:] / 255
        truth = picture[:, :, 2::-1] * alpha + 255 * (1 - alpha)
        assert np.abs(decode_image(encode(picture, kind, **options)) - truth).max() <= 1

    @pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
    @pytest.mark.parametrize("orientation", [1, 6])
    def test_a_grey_that_is_transparent(self, bits: int, orientation: int) -> None:
        values = np.arange(2 * 8).reshape(2, 8) % 2**bits
        rows = [np.packbits((row[:, None] >> np.arange(bits)[::-1]) & 1).tobytes() for row in values]
        directory = struct.pack("<2sHIHHHIHHI", b"II", 42, 8, 1, ORIENTATION, 3, 1, orientation, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in (
                (b"IHDR", struct.pack(">IIBBBBB", 8, 2, bits, 0, 0, 0, 0)),
                (b"eXIf", directory),
                (b"tRNS", struct.pack(">H", 1)),
                (b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))),
                (b"IEND", b""),
            )
        )
        shown = np.where(values == 1, 255, values * 255 // (2**bits - 1))
        truth = shown if orientation == 1 else np.rot90(shown, -1)
        np.testing.assert_array_equal(decode_image(content)[:, :, 0], truth)

    def test_a_fourth_channel_of_tiff_that_is_no_transparency(self) -> None:
        picture = np.dstack([gradient(), np.zeros((6, 10), np.uint8)])
        content = bytearray(encode(picture, "TIFF"))
        entry = content.index(struct.pack("<HHI", 338, 3, 1))
        assert content[entry + 8] == 2  # transparency, which is not multiplied into the colours
        content[entry + 8] = 0
        np.testing.assert_array_equal(decode_image(bytes(content)), gradient()[:, :, ::-1])

    @pytest.mark.parametrize("mode", ["LA", "P", "1", "CMYK", "I;16"])
    def test_unusual_kinds_of_pixels(self, mode: str) -> None:
        buffer = io.BytesIO()
        kind = "JPEG" if mode == "CMYK" else "PNG"
        Image.new(mode, (12, 7), 0 if mode != "CMYK" else (0, 0, 0, 255)).save(buffer, kind)
        found = decode_image(buffer.getvalue())
        assert (found.shape, found.dtype) == ((7, 12, 3), np.uint8)
        assert found.max() <= (255 if mode == "LA" else 4)  # transparent black is white, the others are black

    @pytest.mark.parametrize("kind", FORMATS)
    @pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (3, 2)])
    def test_tiny_pictures(self, kind: str, size: tuple[int, int]) -> None:
        assert decode_image(encode(gradient(*size), kind)).shape == (*size, 3)


class TestOrientation:
    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
    def test_all_eight(self, kind: str, orientation: int) -> None:
        self.check(np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8), kind, orientation)

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize("kind", ["PNG", "WEBP"])
    def test_all_eight_of_transparent_pictures(self, kind: str, orientation: int) -> None:
        blocks = np.kron(np.arange(6).reshape(2, 3) * 40, np.ones((16, 16))).astype(np.uint8)
        opaque = np.dstack([blocks, blocks, blocks, np.full_like(blocks, 255)])
        self.check(opaque, kind, orientation)

    def check(self, array: np.ndarray, kind: str, orientation: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind == "JPEG" else {}
        content = encode(array, kind, exif=exif, **options)
        truth = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
        found = decode_image(content)
        assert found.shape == truth.shape
        assert np.abs(found.astype(int) - truth).max() <= 3

    @pytest.mark.parametrize("value", [0, 9, 65535])
    def test_values_without_a_meaning_change_nothing(self, value: int) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = value
        transparent = np.dstack([gradient(), np.full((6, 10), 255, np.uint8)])
        assert decode_image(encode(transparent, "PNG", exif=exif)).shape == (6, 10, 3)

    @given(st.binary(max_size=60))
    def test_any_exif_data(self, data: bytes) -> None:
        chunk = struct.pack(">I4s", len(data), b"eXIf") + data + b"\0\0\0\0"
        assert exif_orientation(b"\x89PNG\r\n\x1a\n" + chunk) in range(1, 9)


class TestSizes:
    @pytest.mark.parametrize("kind", FORMATS)
    @pytest.mark.parametrize("size", [(1, 1), (30, 500), (500, 30), (200, 300)])
    def test_headers_tell_the_size(self, kind: str, size: tuple[int, int]) -> None:
        assert picture_size(encode(gradient(*size), kind)) == (size[1], size[0])

    @pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0"}])
    def test_each_kind_of_webp(self, options: dict[str, object]) -> None:
        assert picture_size(encode(gradient(21, 35), "WEBP", **options)) == (35, 21)

    def test_progressive_jpeg_with_a_preview(self) -> None:
        preview = encode(gradient(5, 7), "JPEG")
        segment = b"\xff\xe1" + struct.pack(">H", len(preview) + 8) + b"Exif\0\0" + preview
        whole = encode(gradient(40, 50), "JPEG", progressive=True)
        assert picture_size(whole[:2] + segment + whole[2:]) == (50, 40)

    def test_big_endian_tiff(self) -> None:
        head = struct.pack(">2sHIHHHII", b"MM", 42, 8, 2, 256, 4, 1, 70_000)
        assert picture_size(head + struct.pack(">HHIHHI", 257, 3, 1, 33, 0, 0)) == (70_000, 33)

    @pytest.mark.parametrize("kind", FORMATS)
    @given(data=st.data())
    def test_damaged_headers_are_no_crash(self, kind: str, data: st.DataObject) -> None:
        content = bytearray(encode(gradient(), kind))
        at = data.draw(st.integers(4, len(content) - 1))
        content[at:] = data.draw(st.binary(max_size=40))
        size = picture_size(bytes(content))
        assert size is None or min(size) >= 0

    def test_huge_pictures_are_refused_before_memory_is_spent(self, tmp_path: Path) -> None:
        def chunk(name: bytes, data: bytes) -> bytes:
            return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 90_000, 8, 2, 0, 0, 0))
        (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IEND", b""))
        with pytest.raises(ImageError, match=r"bomb\.png has 100000 x 90000 pixels, more than the 100,000,000"):
            read_image(tmp_path / "bomb.png")
        with pytest.raises(ImageError, match="more than the 59 that are allowed"):
            decode_image(encode(gradient(), "PNG"), max_pixels=59)
        assert decode_image(encode(gradient(), "PNG"), max_pixels=60).shape == (6, 10, 3)


class TestBrokenFiles:
    @pytest.mark.parametrize("content", [b"", b"not a picture", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP"])
    def test_files_that_are_no_picture_are_named(self, content: bytes, tmp_path: Path) -> None:
        path = tmp_path / "bad.jpg"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=r"bad\.jpg is not a complete JPEG, PNG"):
            read_image(path)

    @pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
    @pytest.mark.parametrize("kind", FORMATS)
    def test_truncated_pictures_are_named(self, kind: str, share: float, tmp_path: Path) -> None:
        content = encode(np.random.default_rng(0).integers(0, 255, (64, 64, 3)).astype(np.uint8), kind)
        (tmp_path / "half").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ImageError, match=r"half is (damaged|not a complete)"):
            read_image(tmp_path / "half")

    @pytest.mark.parametrize("mode", ["F", "I"])
    def test_deep_tiff_is_refused_with_advice(self, mode: str, tmp_path: Path) -> None:
        Image.fromarray(gradient()[:, :, 0]).convert(mode).save(tmp_path / "deep.tif")
        with pytest.raises(ImageError, match=r"deep\.tif .* TIFF of 32 bits or floats .* save it anew, as PNG of 8"):
            read_image(tmp_path / "deep.tif")

    def test_a_file_without_an_end(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pictures, "MAX_BYTES", 1000)
        with pytest.raises(ImageError, match="/dev/zero has more than 1,000 bytes: it is no picture"):
            read_image("/dev/zero")

    def test_missing_files_and_folders_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"none\.jpg cannot be read"):
            read_image(tmp_path / "none.jpg")
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(tmp_path)


class TestFinding:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "in" / "deep").mkdir(parents=True)
        for name in ("in/b.JPG", "in/a.png", "in/deep/c.webp", "in/notes.txt", "odd.name", "in/[1].png"):
            (tmp_path / name).write_bytes(b"")
        (tmp_path / "in" / "folder.png").mkdir()
        return tmp_path

    def names(self, folder: Path, *sources: str) -> list[str]:
        return [str(path.relative_to(folder)) for path in find_pictures([folder / source for source in sources])]

    def test_folders(self, folder: Path) -> None:
        assert self.names(folder, "in") == ["in/[1].png", "in/a.png", "in/b.JPG", "in/deep/c.webp"]

    def test_files_and_patterns(self, folder: Path) -> None:
        assert self.names(folder, "odd.name") == ["odd.name"]
        assert self.names(folder, "in/*.png") == ["in/[1].png", "in/a.png"]
        assert self.names(folder, "**/*.webp", "in/?.png") == ["in/deep/c.webp", "in/a.png"]

    def test_a_name_that_looks_like_a_pattern(self, folder: Path) -> None:
        assert self.names(folder, "in/[1].png") == ["in/[1].png"]

    def test_none_twice(self, folder: Path) -> None:
        assert self.names(folder, "in/a.png", "in", "in/*.png")[0] == "in/a.png"
        assert len(self.names(folder, "in/a.png", "in", "in/*.png")) == 4

    def test_relative_and_absolute_names_are_the_same_file(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        assert find_pictures(["in/a.png", folder / "in" / "a.png"]) == [Path("in/a.png")]

    @pytest.mark.parametrize(
        ("source", "message"),
        [("gone.jpg", "does not exist"), ("in/x*.png", "no picture fits"), ("in/deep/none", "does not exist")],
    )
    def test_sources_without_pictures(self, folder: Path, source: str, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            find_pictures([folder / source])

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"no pictures in .* \(looked for \.bmp, "):
            find_pictures([tmp_path])

    def test_a_broken_link(self, tmp_path: Path) -> None:
        (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
        with pytest.raises(ImageError, match="does not exist"):
            find_pictures([tmp_path / "a.png"])

    def test_an_unreadable_folder_is_an_error(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        scan = os.scandir

        def denied(path: str) -> object:
            if str(path).endswith("deep"):
                raise PermissionError(13, "Permission denied", path)
            return scan(path)

        monkeypatch.setattr(os, "scandir", denied)
        with pytest.raises(ImageError, match=r"the folder '.*deep' cannot be read: Permission denied"):
            find_pictures([folder / "in"])
