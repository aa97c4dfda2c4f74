"""The rows of the ablation table, and the candidates its hyper-parameters were chosen from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

Options = dict[str, Any]

BASELINE = "ce"


@dataclass(frozen=True)
class Setting:
    """What a row adds to the baseline, cross-entropy under AdamW.

    Args:
        label: of the table.
        attention: options of DistributionalAttention behind every stage, and ``only`` for one
            branch; None for none.
        stages: places of the attention among the backbone's stages; None for all.
        strength_rate: learning rate of the attention's r, as a multiple of the others'.
        squeeze_excitation: the control of the same size in its place.
        rho: radius of SAM; 0 is AdamW alone.
        adaptive: ASAM.
        contrastive: whether the loss sees the features.
        projection: outputs of a projection head that the contrastive loss sees; 0 centres the
            features and nothing else, None shows them as they are.
        rescale: whether the gradient norm sets the loss's balance.
        loss: options of HeterogeneityAwareLoss.
        budget: epochs, as a multiple of the preset's.
    """

    label: str
    attention: Options | None = None
    stages: tuple[int, ...] | None = None
    strength_rate: float = 1.0
    squeeze_excitation: bool = False
    rho: float = 0.0
    adaptive: bool = False
    contrastive: bool = False
    projection: int | None = None
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


RELEASED: Options = {"consistency": "bins", "identity_start": False}
ATTENTION: Options = {}
RHO = 0.05
DSM: Options = {}

_BOTTLENECK_ALONE = {"beta": 1e-6, "bottleneck": 0.01 / 1e-6}
_PLAIN_WEIGHTS = {"eta": 1e3}  # so wide that w is constant: the supervised contrastive loss

ROWS: dict[str, Setting] = {
    BASELINE: Setting("CE"),
    "ce-long": Setting("CE, twice the epochs", budget=2),
    "se": Setting("+ SE, same size as DAM", squeeze_excitation=True),
    "dam-released": Setting("+ DAM, released semantics", attention=RELEASED),
    "dam-time": Setting("+ DAM, time consistency", attention={"identity_start": False}),
    "dam": Setting("+ DAM, time consistency, identity start", attention={}),
    "dam-adversarial": Setting(
        "+ DAM, adversarial, identity start", attention={"perturbation": "adversarial"}
    ),
    "dam-temporal": Setting("+ DAM, temporal branch alone", attention={"only": "temporal"}),
    "dam-frequency": Setting("+ DAM, frequency branch alone", attention={"only": "frequency"}),
    "sam": Setting("+ SAM", rho=RHO),
    "dsm": Setting("+ DSM", contrastive=True, rescale=True, loss=DSM),
    "dsm-contrastive": Setting(
        "+ DSM, contrastive term alone",
        contrastive=True,
        rescale=True,
        loss=DSM | {"bottleneck": 0.0},
    ),
    "dsm-plain": Setting(
        "+ DSM, contrastive term alone, w = 1",
        contrastive=True,
        rescale=True,
        loss=DSM | {"bottleneck": 0.0} | _PLAIN_WEIGHTS,
    ),
    "dsm-bottleneck": Setting(
        "+ DSM, bottleneck alone",
        contrastive=True,
        rescale=True,
        loss=DSM | _BOTTLENECK_ALONE,
    ),
    "dsm-fixed": Setting("+ DSM, λ fixed", contrastive=True, loss=DSM),
    "kl": Setting("+ DRO, KL penalty", loss={"weighting": "kl", "level": 1.0}),
    "kl-ball": Setting("+ DRO, KL ball", loss={"weighting": "kl-ball", "level": 0.2}),
    "chi2": Setting("+ DRO, χ² ball", loss={"weighting": "chi2", "level": 0.5}),
    "cvar": Setting("+ DRO, CVaR", loss={"weighting": "cvar", "level": 0.5}),
    "group": Setting("+ DRO, groups of sources", loss={"weighting": "group", "level": 0.1}),
    "dam-sam": Setting("+ DAM + SAM", attention=ATTENTION, rho=RHO),
    "dsm-sam": Setting("+ DSM + SAM", rho=RHO, contrastive=True, rescale=True, loss=DSM),
    "hdf": Setting(
        "HDF: DAM + DSM + SAM",
        attention=ATTENTION,
        rho=RHO,
        contrastive=True,
        rescale=True,
        loss=DSM,
    ),
}


def _attention(places: str = "all stages", rate: float = 1.0, **options: Any) -> Setting:
    said = [f"{name} {value}" for name, value in options.items()]
    label = " ".join(["DAM", places, f"rate of r {rate:g}", *said])
    return Setting(label, attention=options, stages=_PLACES[places], strength_rate=rate)


def _scaling(projection: int | None = None, **loss: Any) -> Setting:
    said = [f"{name} {value:g}" for name, value in loss.items()]
    label = " ".join(["DSM", *said, *([] if projection is None else [f"projection {projection}"])])
    return Setting(label, contrastive=True, rescale=True, projection=projection, loss=loss)


_PLACES = {"all stages": None, "first three stages": (0, 1, 2), "last stage": (3,)}
_CANDIDATES = (
    Setting("CE"),
    _scaling(),
    _scaling(temperature=0.05),
    _scaling(eta=0.3),
    Setting("SAM radius 0.02", rho=0.02),
    Setting("SAM radius 0.05", rho=0.05),
    _attention(),
    _attention(rate=10),
    _attention(identity_start=False),
    _scaling(temperature=0.05, beta=0.03),
    _scaling(temperature=0.05, beta=0.3),
    _scaling(temperature=0.05, projection=0),
    _scaling(temperature=0.05, bottleneck=1.0),
    _scaling(temperature=0.05, bottleneck=0.0),
    Setting("SAM radius 0.1", rho=0.1),
    Setting("Adaptive SAM radius 0.5", rho=0.5, adaptive=True),
    _attention("first three stages", rate=10),
    _attention("last stage", rate=10),
)
SEARCH = {setting.label.replace(" ", "-"): setting for setting in _CANDIDATES}
