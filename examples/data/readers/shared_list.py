"""The list format that Former-DFER, IAL, DFER-CLIP and MMA-DFER share.

One clip per line, ``<folder or video> <number of frames> <label>``. The frames are recounted, the
number in the file is not believed. One extension: ``film.mp4#30-61`` is the clip of frames 30 to 61
inside a longer video.
"""

from __future__ import annotations

import re
from pathlib import Path

from data.readers.files import FileClips, Row, check_files, collect, lines, number, zero_based
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
    names = classes or tuple(str(i) for i in range(1 + max(row.label for row in rows)))
    groups = tuple(sorted({row.group for row in rows}))
    found, start = [], 0
    for part in parts:
        mine = check_files(rows[start : start + len(part)], skip_missing)
        found.append(collect(mine, names, size, groups))
        start += len(part)
    return found


def _row(where: str, line: str, root: Path) -> Row:
    fields = line.rsplit(maxsplit=2)
    if len(fields) != 3:
        raise HDFError("annotations", "'<path> <frames> <label>'", f"{line!r} at {where}")
    match = re.fullmatch(r"(.+?)(?:#(\d+)-(\d+))?", fields[0])
    name, first, last = match.groups() if match else (fields[0], None, None)
    number(where, fields[1], "number of frames")
    window = (int(first), int(last)) if first and last else None
    group = (
        Path(name).parts[0] if len(Path(name).parts) > 1 and not Path(name).is_absolute() else "all"
    )
    return Row(where, root / name, number(where, fields[2], "label"), group, window)
