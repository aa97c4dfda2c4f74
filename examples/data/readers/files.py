"""Clips that are files: what all readers return, and what all of them must check."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from data.clips import Clip
from data.sampling import Pick, every_frame
from data.styles import Frames
from data.video import Region, read_frames
from hdf_modules import HDFError


@dataclass(frozen=True)
class Row:
    """One line of an annotation file: where it stands, what it names, its label and group.

    ``window`` and ``region`` are the part of the file, as :func:`data.video.read_frames` takes them.
    """

    where: str
    path: Path
    label: int
    group: str = "all"
    window: tuple[int, int] | None = None
    region: Region | None = None


@dataclass(frozen=True)
class FileClips:
    """Clips in files, a :class:`data.clips.ClipSource`.

    Args:
        rows: one per clip; labels counted from zero.
        classes: class names, in the order of the labels.
        groups: group names.
        size: side of the frames in pixels.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    size: int = 112

    @property
    def clips(self) -> list[Clip]:
        """Name, label and group of every clip."""
        order = {name: i for i, name in enumerate(self.groups)}
        return [Clip(_name(row), row.label, order[row.group]) for row in self.rows]

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        """Decode the picked frames of clip ``index``."""
        row = self.rows[index]
        return read_frames(row.path, self.size, pick, row.window, row.region)

    def broken(self) -> dict[int, str]:
        """Decode everything; returns the clips that do not decode, with the reason."""
        reasons = {}
        for index in range(len(self.rows)):
            try:
                self.frames(index)
            except HDFError as error:
                reasons[index] = str(error)
        return reasons

    def without(self, indices: Iterable[int]) -> FileClips:
        """The same clips less some."""
        gone = set(indices)
        return replace(self, rows=tuple(r for i, r in enumerate(self.rows) if i not in gone))


def _name(row: Row) -> str:
    tail = f"#{row.window[0]}-{row.window[1]}" if row.window else ""
    return "/".join(row.path.parts[-3:]) + tail


def lines(path: Path) -> list[tuple[str, str]]:
    """Lines of an annotation file that are not empty, each with ``file:line``."""
    if not path.is_file():
        raise HDFError("annotations", "an annotation file", f"no file {path}")
    text = path.read_text(encoding="utf-8-sig")
    numbered = enumerate(text.splitlines(), start=1)
    found = [(f"{path}:{number}", line.strip()) for number, line in numbered if line.strip()]
    if not found:
        raise HDFError("annotations", "at least one line", f"an empty file {path}")
    return found


def first_existing(root: Path, candidates: Iterable[str], what: str) -> Path:
    """The first of several names that exists under ``root``: releases differ in their folders."""
    tried = list(candidates)
    for name in tried:
        if (root / name).exists():
            return root / name
    raise HDFError("root", f"{what}, one of {', '.join(tried)}", f"none of them in {root}")


def number(where: str, text: str, what: str) -> int:
    """An integer of an annotation file, or an error that says where it stands."""
    try:
        return int(text)
    except ValueError:
        raise HDFError("annotations", f"{what} as an integer", f"{text!r} at {where}") from None


def zero_based(rows: list[Row], num_classes: int | None) -> list[Row]:
    """Count labels from zero, whether the files count from zero or from one.

    With K classes, a 0 proves base zero and a K base one; without K, the smallest label decides.
    """
    labels = {row.label for row in rows}
    base = _base(labels, num_classes)
    bad = next((r for r in rows if not 0 <= r.label - base < (num_classes or r.label + 1)), None)
    if bad:
        expected = f"labels {base}..{base + (num_classes or 0) - 1}"
        raise HDFError("annotations", expected, f"{bad.label} at {bad.where}")
    return [replace(row, label=row.label - base) for row in rows]


def _base(labels: set[int], num_classes: int | None) -> int:
    low, high = min(labels), max(labels)
    known = low == 0 or (low == 1 and (num_classes is None or high == num_classes))
    if not known:
        kind = f"{num_classes} classes" if num_classes else "classes"
        raise HDFError(
            "annotations",
            f"labels of {kind} counted from 0 or from 1",
            f"labels from {low} to {high}, which prove neither",
            "a list that holds the first or the last class shows the base",
        )
    return low


def check_files(rows: list[Row], skip_missing: bool = False) -> list[Row]:
    """Every file must be there; missing ones are counted and the first is named."""
    missing = [row for row in rows if not row.path.exists()]
    if missing and (not skip_missing or len(missing) == len(rows)):
        first = missing[0]
        raise HDFError(
            "root",
            "every annotated clip",
            f"{len(missing)} of {len(rows)} missing, the first {first.path} of {first.where}",
            "download them, correct the root, or skip them on purpose with skip_missing",
        )
    return [row for row in rows if row.path.exists()]


def collect(
    rows: list[Row], classes: tuple[str, ...], size: int, groups: tuple[str, ...] | None = None
) -> FileClips:
    """Make clips of checked rows."""
    names = groups or tuple(sorted({row.group for row in rows}))
    return FileClips(tuple(rows), classes, names, size)
