"""TSN frame sampling: the clip is cut into equal segments and each gives one frame."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from hdf_modules import HDFError

# From the number of frames a clip has to the positions of those that are wanted.
Pick = Callable[[int], NDArray[np.int64]]


def every_frame(available: int) -> NDArray[np.int64]:
    """The :data:`Pick` that takes all."""
    return np.arange(available)


def sample_frames(
    available: int, wanted: int, rng: np.random.Generator | None = None
) -> NDArray[np.int64]:
    """Choose ``wanted`` of ``available`` frames (Wang et al., ECCV 2016).

    Segment i covers [i·available/wanted, (i+1)·available/wanted). With ``rng`` the frame is random
    in its segment (training), without it is the segment's midpoint (test). A clip shorter than
    ``wanted`` keeps all its frames and repeats the last one.

    Raises:
        HDFError: if either count is below one.

    Example:
        >>> sample_frames(32, 4).tolist()
        [4, 12, 20, 28]
        >>> sample_frames(3, 5).tolist()
        [0, 1, 2, 2, 2]
    """
    if min(available, wanted) < 1:
        raise HDFError("available, wanted", "at least one frame each", (available, wanted))
    if available <= wanted:
        return np.minimum(np.arange(wanted), available - 1)
    within = np.full(wanted, 0.5) if rng is None else rng.random(wanted)
    return ((np.arange(wanted) + within) * available / wanted).astype(np.int64)
