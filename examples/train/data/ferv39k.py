"""FERV39k (Wang et al., CVPR 2022): 22 scenes, which are the groups."""

from __future__ import annotations

from pathlib import Path

from examples.train.data.expressions import CLASSES
from examples.train.data.files import FileClips, Row, collect, lines
from hdf_modules import HDFError

_NAMES = {name: label for label, name in enumerate(CLASSES)}


def read_ferv39k(
    root: Path, *, size: int = 112, skip_missing: bool = False
) -> tuple[FileClips, FileClips]:
    """Read the All_scenes setup; lines are ``Scene/Class/number Class``.

    Args:
        root: folder with ``4_setups`` and ``2_ClipsforFaceCrop``.
        size: side of the frames.
        skip_missing: leave clips out whose folder is missing.

    Returns:
        Training and test clips.
    """
    parts = []
    for split in ("train", "test"):
        file = root / "4_setups" / "All_scenes" / f"{split}_All.csv"
        parts.append(
            [_row(where, line, root / "2_ClipsforFaceCrop") for where, line in lines(file)]
        )
    scenes = tuple(sorted({row.group for part in parts for row in part}))
    train, test = (
        collect(part, CLASSES, size, scenes, skip_missing=skip_missing) for part in parts
    )
    return train, test


def _row(where: str, line: str, root: Path) -> Row:
    fields = line.split()
    if len(fields) != 2 or fields[1].lower() not in _NAMES:
        expected = f"'Scene/Class/number Class' with a class of {', '.join(_NAMES)}"
        raise HDFError("annotations", expected, f"{line!r} at {where}")
    path = Path(fields[0])
    return Row(where, root / path, _NAMES[fields[1].lower()], path.parts[0])
