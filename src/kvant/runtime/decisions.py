"""What quantization tried, measured and took: a list that travels in a file's metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from kvant.errors import FormatError

DECISIONS = "decisions"


class Decision(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One step that was tried.

    Attributes:
        step: what was tried, such as "bias correction".
        taken: whether its result was kept.
        before, after: signal to quantization noise in dB on samples held out, without the step and with it; None where
            it was not measured. That of smoothing is at the layers that read what was smoothed, any other at the
            network's worst output.
        detail: how much was done, such as "3 of 12 layers".

    >>> Decision("bias correction", True, 24.1, 26.3).row()
    ('bias correction', 'yes', '24.1 dB', '26.3 dB', '')
    """

    step: str
    taken: bool
    before: float | None = None
    after: float | None = None
    detail: str = ""

    def row(self) -> tuple[str, str, str, str, str]:
        """For a table."""
        before, after = ("" if value is None else f"{value:.1f} dB" for value in (self.before, self.after))
        return self.step, "yes" if self.taken else "no", before, after, self.detail


def to_metadata(decisions: Sequence[Decision]) -> dict[str, str]:
    """The entry of a file's metadata."""
    return {DECISIONS: msgspec.json.encode(list(decisions)).decode()}


def from_metadata(metadata: Mapping[str, str]) -> list[Decision]:
    """The decisions that a file's metadata hold, none where it holds none.

    Raises:
        FormatError: they are not what ``to_metadata`` writes.
    """
    if DECISIONS not in metadata:
        return []
    try:
        return msgspec.json.decode(metadata[DECISIONS], type=list[Decision])
    except msgspec.DecodeError as error:
        raise FormatError(f"the metadata's {DECISIONS!r} are no list of decisions: {error}") from error
