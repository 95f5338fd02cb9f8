"""Damaged files: every truncation, every single-bit flip, and damage whose checksum was made to fit again."""

from __future__ import annotations

import hashlib

import pytest

from kvant.errors import ChecksumError, FormatError
from kvant.format import from_bytes
from kvant.format.layout import DIGEST


def reseal(data: bytes | bytearray) -> bytes:
    """``data`` with a checksum that fits."""
    damaged = bytearray(data)
    damaged[DIGEST] = b"0" * 64
    damaged[DIGEST] = hashlib.sha256(damaged).hexdigest().encode()
    return bytes(damaged)


def flip(data: bytes, bit: int) -> bytearray:
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    return damaged


def refused(data: bytes | bytearray) -> bool:
    """Whether reading raises FormatError; any other exception passes through and fails the test."""
    try:
        from_bytes(data)
    except FormatError:
        return True
    return False


def test_the_file_itself_is_sound(small_file: bytes) -> None:
    assert not refused(small_file)
    assert reseal(small_file) == small_file


def test_every_truncation_is_refused(small_file: bytes) -> None:
    assert all(refused(small_file[:length]) for length in range(len(small_file)))


def test_every_single_bit_flip_is_refused(small_file: bytes) -> None:
    accepted = [bit for bit in range(8 * len(small_file)) if not refused(flip(small_file, bit))]
    assert accepted == []


def test_surplus_bytes_are_refused(small_file: bytes) -> None:
    assert refused(small_file + b"\0")
    assert refused(reseal(small_file + b"\0"))
    assert refused(b"\0" + small_file)


def test_truncations_are_refused_with_a_fitting_checksum(small_file: bytes) -> None:
    assert all(refused(reseal(small_file[:length])) for length in range(DIGEST.stop, len(small_file), 7))


def test_bit_flips_in_the_header_never_raise_anything_else(small_file: bytes) -> None:
    """A flip that turns one name or number into another gives a sound file; the rest is refused, nothing crashes."""
    end = 8 + int.from_bytes(small_file[:8], "little")
    outcomes = [refused(reseal(flip(small_file, bit))) for bit in range(0, 8 * end, 5)]
    assert sum(outcomes) > len(outcomes) // 2


@pytest.mark.slow
def test_every_bit_flip_with_a_fitting_checksum(small_file: bytes) -> None:
    for bit in range(8 * len(small_file)):
        refused(reseal(flip(small_file, bit)))


def test_damage_is_called_damage(small_file: bytes) -> None:
    with pytest.raises(ChecksumError, match="changed, cut short or damaged"):
        from_bytes(flip(small_file, 8 * len(small_file) - 1))
