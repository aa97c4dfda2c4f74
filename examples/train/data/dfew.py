"""DFEW (Jiang et al., ACM MM 2020): five folds, single-labelled clips as folders of frames."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from examples.train.data.expressions import CLASSES
from examples.train.data.files import (
    FileClips,
    Row,
    collect,
    first_existing,
    lines,
    number,
    zero_based,
)
from hdf_modules import HDFError

_LABELS = (
    "EmoLabel_DataSplit/{0}(single-labeled)/set_{1}.csv",
    "{0}(single-labeled)/set_{1}.csv",
    "label/single_{0}set_{1}.csv",
    "{0}_set_{1}.csv",
)
_FRAMES = ("Clip/clip_224x224", "Clip/clip_224x224_16f", "clip_224x224", "clip_224x224_16f")


def read_dfew(
    root: Path, *, fold: int = 1, size: int = 112, skip_missing: bool = False
) -> tuple[FileClips, FileClips]:
    """Read one fold. Labels count from 1, in some copies from 0: the base is detected.

    Args:
        root: folder with ``EmoLabel_DataSplit`` and ``Clip``.
        fold: 1 to 5, the test fold.
        size: side of the frames.
        skip_missing: leave clips out whose folder is missing.

    Returns:
        Training and test clips.
    """
    if fold not in range(1, 6):
        raise HDFError("fold", "1 to 5", fold)
    frames = first_existing(root, _FRAMES, "a folder of frames")
    parts = {split: _rows(root, split, fold, frames) for split in ("train", "test")}
    rows = zero_based(parts["train"] + parts["test"], len(CLASSES))
    cut = len(parts["train"])
    train, test = (
        collect(part, CLASSES, size, ("all",), skip_missing=skip_missing)
        for part in (rows[:cut], rows[cut:])
    )
    return train, test


def _rows(root: Path, split: str, fold: int, frames: Path) -> list[Row]:
    candidates = [pattern.format(split, fold) for pattern in _LABELS]
    file = first_existing(root, candidates, f"the labels of the {split} split, fold {fold}")
    (where, header), *body = lines(file)
    if [field.strip() for field in header.split(",")] != ["video_name", "label"]:
        raise HDFError("annotations", "the header 'video_name,label'", f"{header!r} at {where}")
    return [_row(where, line, frames) for where, line in body]


def _row(where: str, line: str, frames: Path) -> Row:
    name, separator, label = line.partition(",")
    if not separator:
        raise HDFError("annotations", "'video_name,label'", f"{line!r} at {where}")
    row = Row(where, frames / name.strip(), number(where, label.strip(), "label"))
    padded = frames / name.strip().zfill(5)  # spreadsheets drop the leading zeros
    return row if row.path.exists() else replace(row, path=padded)
