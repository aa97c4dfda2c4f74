"""The rows of the ablation table, and the candidates its hyper-parameters were chosen from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
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
        against: the row that this one is compared with; not part of the run.
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
    against: str = BASELINE

    def describe(self) -> str:
        """The options that are not the default, as text."""
        plain = Setting(self.label)
        changed = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if getattr(self, item.name) != getattr(plain, item.name) and item.name != "against"
        }
        return ", ".join(f"`{name}={value}`" for name, value in changed.items()) or "none"


# Chosen by the search below.
RHO = 0.1
DSM: Options = {"temperature": 0.05, "beta": 0.3}

_BRANCH: Options = {"identity_start": False}
_BOTTLENECK_ALONE: Options = {"beta": 1e-6, "bottleneck": 0.03 / 1e-6}  # β b as in DSM, β nearly 0
_PLAIN_WEIGHTS: Options = {"eta": 1e3}  # so wide that w is constant: SupCon


def _dsm(label: str, *, rescale: bool = True, **loss: Any) -> Setting:
    return Setting(label, contrastive=True, rescale=rescale, loss=DSM | loss)


def _dro(label: str, weighting: str, level: float) -> Setting:
    return Setting(f"+ DRO, {label}", loss={"weighting": weighting, "level": level})


# What matters most comes first, because a seed's rows are run in this order.
ROWS: dict[str, Setting] = {
    BASELINE: Setting("CE"),
    "dam": Setting("+ DAM", attention={}),
    "dsm": _dsm("+ DSM"),
    "sam": Setting("+ SAM", rho=RHO),
    "hdf": replace(_dsm("HDF: DAM + DSM + SAM"), attention={}, rho=RHO),
    "se": Setting("+ SE, same size as DAM", squeeze_excitation=True),
    "ce-long": Setting("CE, twice the epochs", budget=2),
    "hdf-long": replace(
        _dsm("HDF, twice the epochs; Δ from CE, likewise"),
        attention={},
        rho=RHO,
        budget=2,
        against="ce-long",
    ),
    "dam-time": Setting("+ DAM, no identity start", attention=_BRANCH),
    "dam-released": Setting(
        "+ DAM, released semantics", attention=_BRANCH | {"consistency": "bins"}
    ),
    "dam-adversarial": Setting("+ DAM, adversarial", attention={"perturbation": "adversarial"}),
    "dam-temporal": Setting("+ DAM, temporal branch alone", attention={"only": "temporal"}),
    "dam-frequency": Setting("+ DAM, frequency branch alone", attention={"only": "frequency"}),
    "dsm-default": _dsm("+ DSM, the library's defaults", temperature=0.1, beta=0.1),
    "dsm-contrastive": _dsm("+ DSM, contrastive term alone", bottleneck=0.0),
    "dsm-plain": _dsm("+ DSM, contrastive term alone, w = 1", bottleneck=0.0, **_PLAIN_WEIGHTS),
    "dsm-bottleneck": _dsm("+ DSM, bottleneck alone", **_BOTTLENECK_ALONE),
    "dsm-fixed": _dsm("+ DSM, λ fixed", rescale=False),
    "kl": _dro("KL penalty", "kl", 1.0),
    "kl-ball": _dro("KL ball", "kl-ball", 0.2),
    "chi2": _dro("χ² ball", "chi2", 0.5),
    "cvar": _dro("CVaR", "cvar", 0.5),
    "group": _dro("groups of sources", "group", 0.1),
    "dam-sam": Setting("+ DAM + SAM", attention={}, rho=RHO),
    "dsm-sam": replace(_dsm("+ DSM + SAM"), rho=RHO),
}


def _attention(places: str = "all stages", rate: float = 1.0, **options: Any) -> Setting:
    said = [f"{name} {value}" for name, value in options.items()]
    label = " ".join(["DAM", places, f"rate of r {rate:g}", *said])
    return Setting(label, attention=options, stages=_PLACES[places], strength_rate=rate)


def _scaling(projection: int | None = None, **loss: Any) -> Setting:
    said = [
        f"{name} {value if isinstance(value, str) else f'{value:g}'}"
        for name, value in loss.items()
    ]
    label = " ".join(["DSM", *said, *([] if projection is None else [f"projection {projection}"])])
    return Setting(label, contrastive=True, rescale=True, projection=projection, loss=loss)


def _weighting(weighting: str, level: float) -> Setting:
    return Setting(f"DRO {weighting} {level}", loss={"weighting": weighting, "level": level})


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
    _weighting("kl", 1.0),
    _weighting("chi2", 0.5),
    _weighting("chi2", 2.0),
    _weighting("cvar", 0.5),
    _scaling(temperature=0.05, beta=1.0),
    _scaling(temperature=0.05, beta=3.0),
    _scaling(temperature=0.1, beta=1.0),
    _scaling(temperature=0.1, eta=0.3, beta=1.0),
)
SEARCH = {setting.label.replace(" ", "-"): setting for setting in _CANDIDATES}
