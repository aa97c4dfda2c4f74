"""The list format that Former-DFER, IAL, DFER-CLIP and MMA-DFER share.

One clip per line, ``<folder or video> <number of frames> <label>``. The frames are recounted, the
number in the file is not believed. One extension, for films that are not cut into clips yet:
``film.mp4#30-61@280,0,640,360`` is frames 30 to 61 of a video, and of each frame the pixels from
column 280 to 640 and row 0 to 360, where the face is. Either part may be left out.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from examples.train.data.files import FileClips, Row, collect, lines, number, zero_based
from hdf_modules import HDFError


def read_list(
    files: list[Path],
    root: Path,
    *,
    classes: tuple[str, ...] | None = None,
    size: int = 112,
    skip_missing: bool = False,
) -> list[FileClips]:
    """Read list files that belong together (training and test), so that they agree on labels.

    Args:
        files: list files.
        root: folder that relative paths start from.
        classes: class names in label order; numbers by default.
        size: side of the frames.
        skip_missing: leave clips out whose file is missing.

    Returns:
        Clips of each file. The group of a clip is its first folder.

    Raises:
        HDFError: with file and line, for what cannot be read.
    """
    parts = [[_row(where, line, root) for where, line in lines(file)] for file in files]
    rows = zero_based([row for part in parts for row in part], len(classes) if classes else None)
    names = classes or _numbers(rows)
    groups = tuple(sorted({row.group for row in rows}))
    found, start = [], 0
    for part in parts:
        mine = rows[start : start + len(part)]
        found.append(collect(mine, names, size, groups, skip_missing=skip_missing))
        start += len(part)
    return found


def _numbers(rows: list[Row]) -> tuple[str, ...]:
    """Names of classes that have none; a gap would be an identity or a length read as a label."""
    labels = {row.label for row in rows}
    gap = next((row for row in rows if row.label and row.label - 1 not in labels), None)
    if gap:
        found = f"none below that at {gap.where}"
        raise HDFError("annotations", "labels without gaps", found, "name all by --classes")
    return tuple(map(str, sorted(labels)))


_PATH = re.compile(r"(?P<name>.+?)(#(?P<window>\d+-\d+))?(@(?P<region>\d+(,\d+){3}))?")


def _row(where: str, line: str, root: Path) -> Row:
    fields = line.rsplit(maxsplit=2)
    if len(fields) != 3:
        raise HDFError("annotations", "'<path> <frames> <label>'", f"{line!r} at {where}")
    number(where, fields[1], "number of frames")
    parts = _PATH.fullmatch(fields[0])
    name = parts["name"] if parts else fields[0]
    window, region = (_integers(parts[part]) if parts else () for part in ("window", "region"))
    label = number(where, fields[2], "label")
    return Row(where, root / name, label, _group(Path(name)), window or None, region or None)


def _integers(text: str | None) -> Any:
    """As many as the pattern has; none if the part was left out."""
    return tuple(int(digits) for digits in re.findall(r"\d+", text or ""))


def _group(name: Path) -> str:
    return name.parts[0] if len(name.parts) > 1 and not name.is_absolute() else "all"
