"""Which of the modules that all of the computation passes through are places for attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.hooks import target_of
from hdf_modules.backbones.reading import Clip, Reading
from hdf_modules.backbones.registry import evenly_spaced
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError

STAGES = 4


@dataclass
class Candidate:
    """A module that all of the computation passes through, and what became of it."""

    name: str
    shape: tuple[int, ...]
    source: int
    """The same number where one output is handed on, as by an ``nn.Sequential``."""
    reading: Reading | None = None
    taken: bool = False
    why: str = ""

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.reading.grid if self.reading else (1, 1)

    @property
    def groups(self) -> Any:
        """The axes of each dimension."""
        return self.reading.layout.groups if self.reading else ()

    def stage(self, clip: Clip) -> Stage:
        """Return the place as a stage, with what cannot be read from the tensor alone."""
        if self.reading is None:
            raise HDFError(f"stage {self.name!r}", "a readable layout", "none")
        layout, frames, grid = self.reading.layout, self.reading.frames, self.reading.grid
        if layout.token_axis is not None:
            square = grid[0] == grid[1]
            extra = layout.prefix_tokens, layout.suffix_tokens
            layout = Layout(layout.pattern, *extra, None if square else grid)
        folded = any("t" in group and len(group) > 1 for group in layout.groups)
        own_frames = frames if folded and frames != clip.frames else None
        return Stage(self.name, self.reading.channels, layout, own_frames)


def choose(model: nn.Module, candidates: list[Candidate], looping: set[str]) -> list[Candidate]:
    """Mark what is taken, and say of the others why not; return all places it was chosen from."""
    for candidate in candidates:
        candidate.why = _obstacle(model, candidate, looping)
    able = [c for c in candidates if not c.why]
    blocks = [c for c in able if is_block(model.get_submodule(c.name))]
    # Where there are blocks but none can be read, what stands before them is no place either.
    unread = [c for c in candidates if c.why and is_block(model.get_submodule(c.name))]
    places = blocks or ([] if any(c.reading is None for c in unread) else able)
    for candidate in able:
        candidate.why = "" if candidate in places else "not a block of its own"
    if not places:
        return []
    kind = places[-1].groups
    stem = [c for c in places if c.groups != kind]
    if len({c.grid for c in places if c not in stem}) > 1 or _siblings(model, places, kind):
        for candidate in stem:
            candidate.why = "before the axes change to those of the last place"
        places = [c for c in places if c not in stem]
    grids = list(dict.fromkeys(c.grid for c in places))
    column = _siblings(model, places, kind) if len(grids) == 1 else []
    if column:
        taken, one = evenly_spaced(column), "quarter of the blocks"
    else:
        last = [_outermost([c for c in places if c.grid == grid], places) for grid in grids]
        taken, one = last[-STAGES:], "resolution"
    for candidate in places:
        candidate.taken = candidate in taken
        candidate.why = f"{'' if candidate.taken else 'not '}the last of its {one}"
    return column or places


def place_before(last: Candidate, places: list[Candidate]) -> Candidate | None:
    """Return the place before the last, if it has the same resolution and is not taken."""
    apart = [
        c
        for c in places
        if c.grid == last.grid and c.source < last.source and not c.name.startswith(f"{last.name}.")
    ]
    return apart[-1] if apart and not apart[-1].taken else None


def _obstacle(model: nn.Module, candidate: Candidate, looping: set[str]) -> str:
    """Say why attention cannot go behind a module, or nothing."""
    if candidate.name in looping:
        return "runs all of its children: attention would be one of them"
    if candidate.reading is None:
        return "no order of axes fits what moves"
    if candidate.reading.grid == (1, 1):
        return "no rows and columns any more"
    try:
        target_of(model, Stage(candidate.name, 1))
    except HDFError as error:
        return str(error)
    return ""


def _outermost(last: list[Candidate], places: list[Candidate]) -> Candidate:
    """Return the last place of a resolution by the widest name that holds no other resolution."""
    found = last[-1]
    same = [c for c in last if c.source == found.source]
    for candidate in same:
        inside = [c for c in places if c.name.startswith(f"{candidate.name}.")]
        if all(c.grid == candidate.grid for c in inside):
            found = candidate
    return found if found.source == last[-1].source else last[-1]


def _siblings(model: nn.Module, places: list[Candidate], groups: Any) -> list[Candidate]:
    """Return the longest row of alike blocks under one parent, if there are at least four."""
    rows: dict[Any, list[Candidate]] = {}
    for candidate in places:
        if candidate.groups == groups:
            parent = candidate.name.rpartition(".")[0]
            key = parent, type(model.get_submodule(candidate.name)), candidate.grid
            rows.setdefault(key, []).append(candidate)
    longest = max(rows.values(), key=len, default=[])
    return longest if len(longest) >= STAGES else []


def is_block(module: nn.Module) -> bool:
    """Whether a module has parts, and among its weights a matrix."""
    return any(True for _ in module.children()) and any(p.ndim > 1 for p in module.parameters())


def described(stages: list[Stage], candidates: list[Candidate]) -> str:
    """Return the table of `explain`."""
    rows = [("", "module", "output", "layout", "")]
    for c in candidates:
        layout = c.reading.layout.pattern if c.reading else "?"
        rows.append(("x" if c.taken else "", c.name, str(c.shape), layout, c.why))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    written = ", ".join(map(_written, stages))
    return "\n".join([*lines, f"stages=[{written}]"])


def _written(stage: Stage) -> str:
    """Return the stage as a user would write it."""
    plain = not stage.layout.has_extra_tokens and stage.layout.grid is None
    layout = repr(stage.layout.pattern) if plain else repr(stage.layout)
    frames = "" if stage.num_frames is None else f", num_frames={stage.num_frames}"
    return f"Stage({stage.name!r}, {stage.channels}, {layout}{frames})"
