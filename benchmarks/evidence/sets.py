"""The data sets of the evidence: drawn faces, photographs of real people in motion, speech."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from examples.train.data import digits, dynamics, expressions
from examples.train.data.clips import Clip
from examples.train.data.digits import DigitClips
from examples.train.data.dynamics import DynamicsClips
from examples.train.data.styles import SOURCES
from examples.train.data.synthetic import SPLITS, SyntheticClips

if TYPE_CHECKING:
    from benchmarks.evidence.settings import Preset


@dataclass(frozen=True)
class Drawn:
    """Drawn faces. A source's people and performances are its own, the same for every seed."""

    names: tuple[str, ...] = ("studio", "film", "webcam", "phone", "archive", "stage")
    # Nothing is trained or tested on these: hyper-parameters are chosen where no test is seen.
    validation_names: tuple[str, ...] = ("night", "television")
    classes: tuple[str, ...] = expressions.CLASSES
    mix: tuple[float, ...] = tuple(
        share / sum(expressions.DFEW_MIX) for share in expressions.DFEW_MIX
    )
    code: tuple[str, ...] = ("expressions", "face", "styles", "synthetic")
    seeded: bool = False  # whether another seed has other clips
    pictures: bool = True  # whether they may be mirrored, moved and brightened in training

    def make(self, preset: Preset, split: str, name: str, _seed: int) -> SyntheticClips:
        """The clips of one source.

        Training clips have DFEW's mix of classes. The others have as many of each class, so that
        recalls are all equally sure; WAR weights them by the mix.
        """
        place = [style.name for style in SOURCES].index(name)
        length = getattr(preset, f"{split}_clips")
        kept = "val" if name in self.validation_names else "test"
        part = split if split in SPLITS else kept  # the first clips of it
        clips = SyntheticClips(part, length, preset.size, (name,), seed=place)
        uniform = (1 / len(self.classes),) * len(self.classes)
        return clips if part == "train" else replace(clips, mix=uniform)

    def cohorts(self, _clip: Clip) -> tuple[str, ...]:
        """Drawn people say nothing of themselves."""
        return ()


@dataclass(frozen=True)
class Faces:
    """Real photographs of real people, interpolated motion, simulated sources.

    Another seed has other people in every source and split. Of a source left out everyone is
    tested: none of them was trained on.
    """

    names: tuple[str, ...] = tuple(dynamics.SOURCES)
    validation_names: tuple[str, ...] = ()  # what is chosen, is on seen sources
    classes: tuple[str, ...] = dynamics.CLASSES
    mix: tuple[float, ...] = (1 / len(dynamics.CLASSES),) * len(dynamics.CLASSES)
    code: tuple[str, ...] = ("dynamics", "face", "flow", "styles")
    seeded: bool = True
    pictures: bool = True

    def make(self, preset: Preset, split: str, name: str, seed: int) -> DynamicsClips:
        """The clips of one source, every class as often."""
        part = {"unseen": "all", "corrupted": "test"}.get(split, split)
        return DynamicsClips(part, getattr(preset, f"{split}_clips"), preset.size, (name,), seed)

    def cohorts(self, clip: Clip) -> tuple[str, ...]:
        """The groups of people that whoever is shown belongs to, as they stated them."""
        person = _people()[clip.name.split("/")[1].split("_")[0]]
        return person.gender, "white" if person.ethnicity == "white" else "not white"


@dataclass(frozen=True)
class Digits:
    """Real recordings of spoken digits; a source is a speaker.

    Another seed has other recordings in the splits. Of a speaker left out all are tested.
    """

    names: tuple[str, ...] = digits.SPEAKERS
    validation_names: tuple[str, ...] = ()
    classes: tuple[str, ...] = digits.CLASSES
    mix: tuple[float, ...] = (1 / len(digits.CLASSES),) * len(digits.CLASSES)
    code: tuple[str, ...] = ("digits",)
    seeded: bool = True
    pictures: bool = False

    def make(self, preset: Preset, split: str, name: str, seed: int) -> DigitClips:
        """The clips of one speaker, every digit as often."""
        part, length = "all" if split == "unseen" else split, getattr(preset, f"{split}_clips")
        return DigitClips(part, length, preset.size, (name,), seed, preset.root or Path())

    def cohorts(self, _clip: Clip) -> tuple[str, ...]:
        """Six speakers are too few for groups."""
        return ()


def _people() -> dict[str, dynamics.Person]:
    return {person.name: person for person in dynamics.people()}


Chosen = Drawn | Faces | Digits
DATA: Mapping[str, Chosen] = {"drawn": Drawn(), "faces": Faces(), "digits": Digits()}
