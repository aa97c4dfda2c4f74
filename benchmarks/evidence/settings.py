"""What is run: rows of the table, candidates of the search, budgets; from the data files beside."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

Options = dict[str, Any]

BASELINE, WHOLE = "ce", "hdf"
MAIN = (BASELINE, WHOLE)  # their difference is the main result
# What a row is compared with beside the baseline: with what does only a part of it, or as much in
# another way.
COMPARED = {
    WHOLE: (
        BASELINE,
        "dsm-sam",
        "sam",
        "dsm",
        "dam",
        "dam-sam",
        "dam-dsm",
        "hdf-gradient",
        "hdf-weights",
        "ce-long",
    ),
    "dam": (BASELINE, "frame-gain", "se", "dam-sam", "dam-dsm", "ce-long"),
    "dam-long": ("dam", "ce-long"),
}


@dataclass(frozen=True)
class Setting:
    """What a row adds to the baseline, cross-entropy under AdamW.

    Args:
        label: of the table.
        attention: options of DistributionalAttention behind every stage, and ``only`` for one
            branch or ``content`` for another temporal one; None for none.
        squeeze_excitation: the control of the same size in its place.
        frame_gain: the control that does not look at the clip: a learned number per frame.
        rho: radius of SAM; 0 is AdamW alone.
        contrastive: whether the loss sees the features.
        rescale: whether the gradient norm sets the loss's balance.
        loss: options of HeterogeneityAwareLoss.
        budget: epochs, as a multiple of the preset's.
    """

    label: str
    attention: Options | None = None
    squeeze_excitation: bool = False
    frame_gain: bool = False
    rho: float = 0.0
    contrastive: bool = False
    rescale: bool = False
    loss: Options = field(default_factory=dict)
    budget: float = 1.0

    def describe(self) -> str:
        """The options that are not the default, as text."""
        plain = Setting(self.label)
        changed = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) != getattr(plain, item.name)
        }
        return ", ".join(f"`{name}={value}`" for name, value in changed.items()) or "none"


@dataclass(frozen=True)
class Preset:
    """A budget, equal for every row of the table.

    Args:
        data: ``"drawn"`` faces, real ``"faces"`` in motion, or recordings of spoken ``"digits"``.
        table: file of the rows, where they are not those of the data; part of no record.
        model: of examples.train.models.
        size: side of the frames in pixels.
        frames: per clip.
        train_clips, val_clips, test_clips, corrupted_clips: of each source; no corrupted ones are
            measured where there are none.
        unseen_clips: for validation or test, of each source that is not trained on; many, because
            they are the smaller part of what is measured.
        epochs: from random weights.
        batch_size, lr, weight_decay: of AdamW with one cycle.
        seeds: runs of each row; run i leaves out source i modulo their number.
        main_seeds: runs of the baseline and of the whole method, whose difference is the main
            result: two for every source left out, because sources differ by more than rows do.
        device: where to train.
        amp: mixed precision.
        root: folder of the data, where they are not part of the repository; part of no record.
    """

    data: str = "drawn"
    table: str = field(default="", repr=False)
    model: str = "small"
    size: int = 32
    frames: int = 8
    train_clips: int = 80
    val_clips: int = 280
    test_clips: int = 280
    unseen_clips: int = 1400
    corrupted_clips: int = 7
    epochs: int = 60
    batch_size: int = 24
    lr: float = 3e-3
    weight_decay: float = 0.05
    seeds: int = 5
    main_seeds: int = 12
    device: str = "cpu"
    amp: bool = False
    root: Path | None = field(default=None, repr=False)

    @property
    def rows(self) -> dict[str, Setting]:
        """The rows of the table."""
        if self.table:
            base = "rows.json" if self.data == "drawn" else "faces.json"
            return read_settings(f"{self.table}.json", base)
        return ROWS if self.data == "drawn" else FACES

    def runs(self, name: str) -> int:
        """How many runs a row has."""
        return self.main_seeds if name in MAIN else self.seeds


def read_settings(file: str, base: str | None = None) -> dict[str, Setting]:
    """Read settings by name, without blanks; a name is a label where there is no other.

    What a setting does not say is as in the earlier one that its ``like`` names, or in that of
    the file ``base``, options one by one; ``why`` is for the reader alone.
    """
    own = _options(file, _options(base, {}) if base else {})
    return {name.replace(" ", "-"): Setting(**options) for name, options in own.items()}


def _options(file: str, known: dict[str, Options]) -> dict[str, Options]:
    found: dict[str, Options] = {}
    for name, own in _read(file).items():
        own.pop("why", None)
        base = (known | found)[own.pop("like")] if "like" in own else {"label": name}
        merged = {
            key: base[key] | value if isinstance(value, dict) and key in base else value
            for key, value in own.items()
        }
        found[name] = base | merged
    return found


def _read(file: str) -> Any:
    return json.loads(Path(__file__).with_name(file).read_text(encoding="utf-8"))


# What matters most comes first in the files, because a seed's rows are run in this order.
ROWS = read_settings("rows.json")
FACES = read_settings("faces.json")
SEARCH = read_settings("candidates.json")
GATES = read_settings("gates.json")
PRESETS = {name: Preset(**options) for name, options in _read("presets.json").items()}
