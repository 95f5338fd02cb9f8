"""From heat maps and part-affinity fields to people.

Bottom-up decoding after Cao et al. (CVPR 2017; TPAMI 2019): peaks of the heat maps are candidates for parts; a limb
between two candidates scores by the line integral of its part-affinity field; the best limbs are joined to people.
`decode_numpy` does that to be read, and where the C library is missing; `decode_native` leaves it to the library.
No map is ever enlarged to the picture's size.
"""

from __future__ import annotations

from collections.abc import Sequence

from kvant.pose import decode_native, decode_numpy
from kvant.pose.layout import HEAT_CHANNELS, PAF_CHANNELS
from kvant.pose.maps import DecoderSettings, Maps
from kvant.pose.person import Person
from kvant.runtime import native


def decode_people(maps: Sequence[Maps], settings: DecoderSettings | None = None) -> list[Person]:
    """Return the people that a network's maps show, best first, in coordinates of the picture.

    `maps` are those of one picture, at one or several scales, over which they are averaged. Raises ValueError if their
    shapes do not fit or there are none.

    >>> import numpy as np
    >>> from kvant.pose import Geometry
    >>> geometry = Geometry(picture=(64, 64), resized=(64, 64), padded=(64, 64), stride=8)
    >>> decode_people([Maps(np.zeros((19, 8, 8), np.float32), np.zeros((38, 8, 8), np.float32), geometry)])
    []
    """
    _check_maps(maps)
    find = decode_native.find_people if native.is_built() else decode_numpy.find_people
    return find(maps, settings or DecoderSettings())


def _check_maps(maps: Sequence[Maps]) -> None:
    if not maps:
        raise ValueError("no maps were given")
    for heat, paf, geometry in maps:
        if heat.ndim != 3 or heat.shape[0] != HEAT_CHANNELS or paf.shape != (PAF_CHANNELS, *heat.shape[1:]):
            raise ValueError(
                f"expected heat maps {HEAT_CHANNELS} x h x w and fields {PAF_CHANNELS} x h x w, "
                f"got {heat.shape} and {paf.shape}"
            )
        if geometry.picture != maps[0].geometry.picture:
            raise ValueError(f"maps of different pictures: {geometry.picture} and {maps[0].geometry.picture}")
