"""What a picture's first bytes tell before it is decoded: its size, and how the camera was held."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

Size = tuple[int, int]

TIFF = (b"II*\0", b"MM\0*")
_PNG = b"\x89PNG\r\n\x1a\n"


def picture_size(content: bytes) -> Size | None:
    """Width and height that the header of a JPEG, PNG, WebP, BMP, GIF or TIFF file gives.

    None for anything else, and for a header that is cut off.

    >>> picture_size(bytes.fromhex("89504e470d0a1a0a 0000000d 49484452 00000280 000001e0"))
    (640, 480)
    """
    for magic, read in _READERS:
        if content.startswith(magic):
            try:
                return read(content)
            except (struct.error, IndexError):
                return None
    return None


def _png(content: bytes) -> Size:
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


def _gif(content: bytes) -> Size:
    width, height = struct.unpack_from("<HH", content, 6)
    return width, height


def _bmp(content: bytes) -> Size:
    # The first version of the header has 12 bytes and shorter fields; a negative height says: top row first.
    old = struct.unpack_from("<I", content, 14)[0] == 12
    width, height = struct.unpack_from("<HH" if old else "<ii", content, 18)
    return abs(width), abs(height)


def _jpeg(content: bytes) -> Size:
    """The frame header, behind segments of other kinds: one of them may hold a preview with a header of its own."""
    position = 2
    while True:
        while content[position + 1] == 0xFF:  # markers may be preceded by any number of fill bytes
            position += 1
        marker, length = content[position + 1], struct.unpack_from(">H", content, position + 2)[0]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", content, position + 5)
            return width, height
        position += 2 + max(length, 2)


def _webp(content: bytes) -> Size | None:
    kind = content[8:16]
    if kind == b"WEBPVP8X":
        return _three_bytes(content, 24) + 1, _three_bytes(content, 27) + 1
    if kind == b"WEBPVP8L":
        bits = struct.unpack_from("<I", content, 21)[0]
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"WEBPVP8 ":
        width, height = struct.unpack_from("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _three_bytes(content: bytes, position: int) -> int:
    low, high = struct.unpack_from("<HB", content, position)
    return int(low | high << 16)


def _tiff(content: bytes) -> Size | None:
    tags = _first_directory(content)
    return (tags[_WIDTH], tags[_HEIGHT]) if _WIDTH in tags and _HEIGHT in tags else None


def _first_directory(content: bytes) -> dict[int, int]:
    """The numbers that TIFF's first directory gives, by tag; EXIF data is such a directory, too."""
    order = "<" if content.startswith(b"II") else ">"
    directory = struct.unpack_from(f"{order}I", content, 4)[0]
    tags = {}
    for entry in range(struct.unpack_from(f"{order}H", content, directory)[0]):
        position = directory + 2 + 12 * entry
        tag, kind = struct.unpack_from(f"{order}HH", content, position)
        if kind in (_SHORT, _LONG):
            tags[tag] = struct.unpack_from(order + ("H" if kind == _SHORT else "I"), content, position + 8)[0]
    return tags


def exif_orientation(content: bytes) -> int:
    """How a PNG or WebP file says that it is to be turned: EXIF's 1..8, 1 if it says nothing.

    These can be transparent, and OpenCV does not turn what it decodes with transparency; JPEG and TIFF it does.
    """
    try:
        exif = next((data for name, data in _chunks(content) if name in (b"eXIf", b"EXIF")), b"")
        # Some writers repeat the prefix that EXIF data has in JPEG files.
        found = _first_directory(exif.removeprefix(b"Exif\0\0")).get(_ORIENTATION, 1) if exif else 1
    except (struct.error, IndexError):
        return 1
    return found if 1 <= found <= 8 else 1


def transparent_grey(content: bytes) -> int | None:
    """The value of pixels, decoded to 8 or 16 bits, that a grey PNG file says are transparent; OpenCV shows them.

    None if there is none, and for any other file.
    """
    if not content.startswith(_PNG) or content[25:26] != b"\0":
        return None
    chosen = next((data for name, data in _chunks(content) if name == b"tRNS"), b"")
    if len(chosen) < 2:
        return None
    bits, value = content[24], int.from_bytes(chosen[:2], "big")
    return value * 255 // (2**bits - 1) if bits < 8 else value


def has_other_samples(content: bytes) -> bool:
    """Whether a TIFF file says that the fourth sample of a pixel is something else than transparency."""
    try:
        return content.startswith(TIFF) and _first_directory(content).get(_EXTRA_SAMPLES) == 0
    except struct.error:
        return False


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    png = content.startswith(_PNG)
    position = 8 if png else 12
    while position + 8 <= len(content):
        if png:
            length, name = struct.unpack_from(">I4s", content, position)
            step = 12 + length
        else:
            name, length = struct.unpack_from("<4sI", content, position)
            step = 8 + length + length % 2
        yield name, content[position + 8 : position + 8 + length]
        position += step


_WIDTH, _HEIGHT, _ORIENTATION, _EXTRA_SAMPLES = 256, 257, 274, 338
_SHORT, _LONG = 3, 4
_READERS: tuple[tuple[bytes, Callable[[bytes], Size | None]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (_PNG, _png),
    (b"RIFF", _webp),
    (b"BM", _bmp),
    (b"GIF8", _gif),
    *((magic, _tiff) for magic in TIFF),
)
