"""MAFW (Liu et al., ACM MM 2022): five folds of single-labelled clips in eleven classes."""

from __future__ import annotations

from pathlib import Path

from examples.train.data.files import FileClips, Row, collect, first_existing, lines
from hdf_modules import HDFError

CLASSES = (
    "anger",
    "disgust",
    "fear",
    "happiness",
    "neutral",
    "sadness",
    "surprise",
    "contempt",
    "anxiety",
    "helplessness",
    "disappointment",
)
_LABELS = (
    "single/no_caption/set_{1}/{0}.txt",
    "single/with_caption/set_{1}/{0}.txt",
    "set_{1}/{0}.txt",
)
_CLIPS = ("data/frames", "frames", "data/clips", "clips")


def read_mafw(
    root: Path,
    *,
    fold: int = 1,
    size: int = 112,
    order: tuple[str, ...] = CLASSES,
    skip_missing: bool = False,
) -> tuple[FileClips, FileClips]:
    """Read one fold; lines are ``03747.mp4 anger``, with or without a caption after them.

    Args:
        root: folder with ``single`` and ``data``.
        fold: 1 to 5, the test fold.
        size: side of the frames.
        order: the class names in the order of the label ids. Several orders are in use, so labels
            are told by name; choose the one that a checkpoint was trained with.
        skip_missing: leave clips out whose frames are missing.

    Returns:
        Training and test clips.
    """
    if fold not in range(1, 6):
        raise HDFError("fold", "1 to 5", fold)
    if sorted(order) != sorted(CLASSES):
        raise HDFError("order", f"each of {', '.join(CLASSES)} once", ", ".join(order))
    clips = first_existing(root, _CLIPS, "a folder of frames or clips")
    parts = []
    for split in ("train", "test"):
        names = [pattern.format(split, fold) for pattern in _LABELS]
        file = first_existing(root, names, f"the labels of the {split} split, fold {fold}")
        rows = [_row(where, line, clips, order) for where, line in lines(file)]
        parts.append(collect(rows, order, size, ("all",), skip_missing=skip_missing))
    return parts[0], parts[1]


def _row(where: str, line: str, clips: Path, order: tuple[str, ...]) -> Row:
    name, label = [*line.split(maxsplit=2), "", ""][:2]
    if label.lower() not in order:
        expected = f"'<name>.mp4 <class>' with a class of {', '.join(order)}"
        raise HDFError("annotations", expected, f"{line!r} at {where}")
    frames = clips / Path(name).stem
    path = frames if frames.is_dir() or clips.name == "frames" else clips / name
    return Row(where, path, order.index(label.lower()))
