"""CREMA-D (Cao et al., IEEE TAC 2014): acted videos of 91 people, who are the groups.

There is no annotation file: names say it, ``1001_IEO_HAP_LO.flv`` is actor, sentence, emotion and
level. There is no official split either; no actor is in the training and the test part of a fold.
"""

from __future__ import annotations

import re
from pathlib import Path

from examples.train.data.files import FileClips, Row, collect
from examples.train.data.video import VIDEOS, is_hidden
from hdf_modules import HDFError

CLASSES = ("angry", "disgust", "fear", "happy", "neutral", "sad")
# Damaged in the release itself.
BROKEN = ("1076_MTI_NEU_XX", "1076_MTI_SAD_XX", "1064_TIE_SAD_XX", "1064_IEO_DIS_MD")
CLIPS = 7442
_CODES = ("ANG", "DIS", "FEA", "HAP", "NEU", "SAD")
_NAME = re.compile(rf"(1\d{{3}})_[A-Z]{{3}}_({'|'.join(_CODES)})_(LO|MD|HI|XX?)")


def read_cremad(
    root: Path,
    *,
    fold: int = 1,
    folds: int = 5,
    size: int = 112,
    skip_missing: bool = False,
    skip_broken: bool = False,
    broken: tuple[str, ...] = BROKEN,
) -> tuple[FileClips, FileClips]:
    """Read one subject-independent fold.

    Args:
        root: folder with ``VideoFlash``.
        fold: the test fold, from 1.
        folds: how many; actor 1001 is tested in the first, 1002 in the second, and so on.
        size: side of the frames.
        skip_missing: accept a folder that does not hold all 7,442 clips.
        skip_broken: leave out the clips named in ``broken``.
        broken: names of clips that are known to be damaged; empty where they were repaired.

    Returns:
        Training and test clips.
    """
    if folds < 2 or not 1 <= fold <= folds:
        raise HDFError("fold", "1 <= fold <= folds, at least 2 folds", (fold, folds))
    folder = root / "VideoFlash"
    if not folder.is_dir():
        raise HDFError("root", "a folder with VideoFlash", f"none in {root}")
    files = (path for path in sorted(folder.iterdir()) if not is_hidden(path))
    rows = [_row(path) for path in files if path.suffix.lower() in VIDEOS]
    if not rows or (len(rows) != CLIPS and not skip_missing):
        hint = "download the rest, or accept it on purpose with --skip missing"
        raise HDFError("root", f"{CLIPS} videos", f"{len(rows)} in {folder}", hint)
    kept, left_out = _without(rows, broken, skip_broken)
    actors = tuple(sorted({row.group for row in kept}))
    tested = {actor for actor in actors if (int(actor) - 1001) % folds == fold - 1}
    parts = [[row for row in kept if (row.group in tested) is test] for test in (False, True)]
    if not all(parts):
        raise HDFError("root", f"actors for {folds} folds", f"{', '.join(actors)} in {folder}")
    train, test = (collect(part, CLASSES, size, actors) for part in parts)
    return train.noting(left_out), test


def _row(path: Path) -> Row:
    match = _NAME.fullmatch(path.stem)
    if not match:
        form = f"names like 1001_IEO_HAP_LO, emotion one of {', '.join(_CODES)}"
        raise HDFError("root", form, f"{path.name} in {path.parent}")
    return Row(str(path.parent), path, _CODES.index(match[2]), match[1])


def _without(
    rows: list[Row], broken: tuple[str, ...], skip: bool
) -> tuple[list[Row], tuple[str, ...]]:
    found = [row for row in rows if row.path.stem in broken]
    if found and not skip:
        names = ", ".join(row.path.stem for row in found)
        hint = "leave them out with --skip broken, or pass broken=() if they are repaired"
        raise HDFError("root", "no damaged clips", f"{len(found)} known ones: {names}", hint)
    kept = [row for row in rows if row.path.stem not in broken]
    return kept, tuple(f"{row.path} is known to be damaged" for row in found)
