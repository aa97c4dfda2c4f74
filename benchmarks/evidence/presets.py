"""How much is trained and measured: the two budgets of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.evidence.settings import MAIN


@dataclass(frozen=True)
class Preset:
    """A budget, equal for every row of the table.

    Args:
        model: of examples/models.
        size: side of the frames in pixels.
        frames: per clip.
        train_clips, val_clips, test_clips, corrupted_clips: of each source.
        unseen_clips: for validation or test, of each source that is not trained on; many, because
            they are the smaller part of what is measured.
        epochs: from random weights.
        batch_size, lr, weight_decay: of AdamW with one cycle.
        seeds: runs of each row; run i leaves out source i modulo their number.
        main_seeds: runs of the baseline and of the whole method, whose difference is the main
            result: two for every source left out, because sources differ by more than rows do.
        device: where to train.
        amp: mixed precision.
    """

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

    def runs(self, name: str) -> int:
        """How many runs a row has."""
        return self.main_seeds if name in MAIN else self.seeds


PRESETS = {
    "cpu": Preset(),
    "gpu": Preset(
        model="r3d_18",
        size=112,
        frames=16,
        train_clips=400,
        corrupted_clips=21,
        epochs=40,
        lr=5e-4,
        device="cuda",
        amp=True,
    ),
    "miniature": Preset(
        size=16,
        frames=4,
        train_clips=8,
        val_clips=7,
        test_clips=7,
        unseen_clips=7,
        corrupted_clips=7,
        epochs=1,
        batch_size=8,
        seeds=2,
        main_seeds=3,
    ),
}
