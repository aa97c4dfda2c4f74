"""Clips that are files: what all readers return, and what all of them must check."""

from __future__ import annotations

import io
import unicodedata
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from examples.train.data.clips import Clip, Frames, Pick, every_frame, parallel_map
from examples.train.data.video import Region, is_there, read_frames
from hdf_modules import HDFError


@dataclass(frozen=True)
class Row:
    """One line of an annotation file: where it stands, what it names, its label and group.

    ``window`` and ``region`` are the part of it, as ``read_frames`` takes them.
    """

    where: str
    path: Path
    label: int
    group: str = "all"
    window: tuple[int, int] | None = None
    region: Region | None = None


@dataclass(frozen=True)
class FileClips:
    """Clips in files, a ``ClipSource``.

    Args:
        rows: one per clip; labels counted from zero.
        classes: class names, in the order of the labels.
        groups: group names.
        size: side of the frames in pixels.
        left_out: what was skipped on request, each with the reason.
    """

    rows: tuple[Row, ...]
    classes: tuple[str, ...]
    groups: tuple[str, ...]
    size: int = 112
    left_out: tuple[str, ...] = ()

    @property
    def clips(self) -> list[Clip]:
        """Name, label and group of every clip."""
        order = {name: i for i, name in enumerate(self.groups)}
        return [Clip(_name(row), row.label, order[row.group]) for row in self.rows]

    def frames(self, index: int, pick: Pick = every_frame) -> Frames:
        """Decode the picked frames of clip ``index``."""
        row = self.rows[index]
        return read_frames(row.path, self.size, pick, row.window, row.region)

    def broken(self, workers: int = 1) -> dict[int, str]:
        """Decode everything; returns the clips that do not decode, with the reason."""
        reasons = parallel_map(
            self._reason, range(len(self.rows)), workers, "looking for broken clips"
        )
        return {index: reason for index, reason in enumerate(reasons) if reason}

    def _reason(self, index: int) -> str:
        try:
            self.frames(index)
        except HDFError as error:
            return f"{error} ({self.rows[index].where})"
        return ""

    def without(self, broken: Mapping[int, str]) -> FileClips:
        """The same clips less some, whose reasons are kept in ``left_out``."""
        rows = tuple(row for i, row in enumerate(self.rows) if i not in broken)
        if not rows:
            found = f"{len(broken)} broken ones, the first {next(iter(broken.values()))}"
            raise HDFError("root", "a clip that decodes", found, "fetch them again")
        return replace(self, rows=rows).noting(broken.values())

    def noting(self, reasons: Iterable[str]) -> FileClips:
        """The same clips with more reasons in ``left_out``."""
        return replace(self, left_out=(*self.left_out, *reasons))


def _name(row: Row) -> str:
    tail = f"#{row.window[0]}-{row.window[1]}" if row.window else ""
    return "/".join(row.path.parts[-3:]) + tail


def lines(path: Path) -> list[tuple[str, str]]:
    """Lines of an annotation file that are not empty, each with ``file:line``."""
    if not path.is_file():
        raise HDFError("annotations", "an annotation file", f"no file {path}", "correct the path")
    text = _decode(path)
    # the ends of lines in files alone: captions hold others, as Word has them
    numbered = enumerate(io.StringIO(text, newline=None), start=1)
    found = [(f"{path}:{number}", line.strip()) for number, line in numbered if line.strip()]
    if not found:
        raise HDFError("annotations", "at least one line", f"an empty file {path}")
    return found


def _decode(path: Path) -> str:
    """UTF-8 with or without a mark, else GBK: captions of Chinese releases are written in it.

    UTF-16 where its mark is: lists that PowerShell makes.
    """
    content = path.read_bytes()
    marked = content.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
    for encoding in ("utf-16",) if marked else ("utf-8-sig", "gb18030"):
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            continue
    hint = "save it as UTF-8"
    raise HDFError("annotations", "text in UTF-8 or GBK", f"neither in {path}", hint)


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
    known = low == 0 or (low == 1 and (num_classes is None or high >= num_classes))
    if not known:
        kind = f"{num_classes} classes" if num_classes else "classes"
        raise HDFError(
            "annotations",
            f"labels of {kind} counted from 0 or from 1",
            f"labels from {low} to {high}, which prove neither",
            "give a list that holds the first or the last class",
        )
    return low


def _spelt(row: Row) -> Row:
    """The row with its path as the disk spells it: macOS writes é as two letters, others as one."""
    forms = (Path(unicodedata.normalize(form, str(row.path))) for form in ("NFC", "NFD"))
    there = next(filter(Path.exists, [row.path, *forms]), row.path)
    return row if there == row.path else replace(row, path=there)


def collect(
    rows: list[Row],
    classes: tuple[str, ...],
    size: int,
    groups: tuple[str, ...] | None = None,
    *,
    skip_missing: bool = False,
) -> FileClips:
    """Make clips of rows whose files must be there; missing ones are counted, the first named."""
    rows = list(map(_spelt, rows))
    missing = [row for row in rows if not is_there(row.path)]
    if missing and (not skip_missing or len(missing) == len(rows)):
        first = missing[0]
        raise HDFError(
            "root",
            "every annotated clip",
            f"{len(missing)} of {len(rows)} missing, the first {first.path} of {first.where}",
            "download them, correct the root, or skip them on purpose with --skip missing",
        )
    names = groups or tuple(sorted({row.group for row in rows}))
    left_out = tuple(f"{row.path} of {row.where} is missing" for row in missing)
    absent = set(missing)
    found = tuple(row for row in rows if row not in absent)
    return FileClips(found, classes, names, size, left_out)
