"""The rows of the ablation table, and the candidates its hyper-parameters were chosen from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

Options = dict[str, Any]

BASELINE, WHOLE = "ce", "hdf"
MAIN = (BASELINE, WHOLE)  # their difference is the main result


@dataclass(frozen=True)
class Setting:
    """What a row adds to the baseline, cross-entropy under AdamW.

    Args:
        label: of the table.
        attention: options of DistributionalAttention behind every stage, and ``only`` for one
            branch; None for none.
        squeeze_excitation: the control of the same size in its place.
        rho: radius of SAM; 0 is AdamW alone.
        contrastive: whether the loss sees the features.
        rescale: whether the gradient norm sets the loss's balance.
        loss: options of HeterogeneityAwareLoss.
        budget: epochs, as a multiple of the preset's.
        against: the row that this one is compared with; not part of the run.
    """

    label: str
    attention: Options | None = None
    squeeze_excitation: bool = False
    rho: float = 0.0
    contrastive: bool = False
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
RHO = 0.05
DSM: Options = {"temperature": 0.05, "beta": 0.1, "memory": 256, "across_groups": True}
FROM_SCRATCH: Options = {"identity_start": False}  # there is no pretrained network to preserve

_BOTTLENECK_ALONE: Options = {"beta": 1e-6, "bottleneck": 0.01 / 1e-6}  # β b as in DSM, β nearly 0
_PLAIN_WEIGHTS: Options = {"eta": 1e3}  # so wide that w is constant: SupCon


def _dsm(label: str, *, rescale: bool = False, **loss: Any) -> Setting:
    return Setting(label, contrastive=True, rescale=rescale, loss=DSM | loss)


def _dam(label: str, **options: Any) -> Setting:
    return Setting(label, attention=FROM_SCRATCH | options)


def _dro(label: str, weighting: str, level: float) -> Setting:
    return Setting(f"+ DRO, {label}", loss={"weighting": weighting, "level": level})


_HDF = Setting("", attention=FROM_SCRATCH, rho=RHO, contrastive=True, loss=DSM)

# What matters most comes first, because a seed's rows are run in this order.
ROWS: dict[str, Setting] = {
    BASELINE: Setting("CE"),
    WHOLE: replace(_HDF, label="HDF: DAM + DSM + SAM"),
    "dam": _dam("+ DAM"),
    "dsm": _dsm("+ DSM"),
    "sam": Setting("+ SAM", rho=RHO),
    "ce-long": Setting("CE, twice the epochs", budget=2),
    "dsm-sam": replace(_HDF, label="HDF without DAM", attention=None),
    "dam-released": _dam("+ DAM, released semantics", consistency="bins"),
    "se": Setting("+ SE, same size as DAM", squeeze_excitation=True),
    "dam-adversarial": _dam("+ DAM, adversarial", perturbation="adversarial"),
    "dam-temporal": _dam("+ DAM, temporal branch alone", only="temporal"),
    "dam-frequency": _dam("+ DAM, frequency branch alone", only="frequency"),
    "dsm-paper": _dsm("+ DSM, positives of any source", across_groups=False),
    "dsm-contrastive": _dsm("+ DSM, contrastive term alone", bottleneck=0.0),
    "dsm-plain": _dsm("+ DSM, contrastive term alone, w = 1", bottleneck=0.0, **_PLAIN_WEIGHTS),
    "dsm-bottleneck": _dsm("+ DSM, bottleneck alone", **_BOTTLENECK_ALONE),
    "kl": _dro("KL penalty", "kl", 1.0),
    "chi2": _dro("χ² ball", "chi2", 0.5),
    "cvar": _dro("CVaR", "cvar", 0.5),
    "group": _dro("groups of sources", "group", 0.01),
    "hdf-gradient": replace(
        _HDF, label="HDF, λ by gradient", rescale=True, loss=DSM | {"floor": 0.5}
    ),
    "dam-identity": Setting("+ DAM, identity start", attention={}),
}
# What the whole method is compared with beside the baseline: each does only a part of it.
PARTS = (BASELINE, "dsm-sam", "sam", "dsm", "dam", "hdf-gradient", "ce-long")


def _scaling(**changes: Any) -> Setting:
    """A candidate with the contrastive loss; options of no field are the loss's."""
    text = " ".join(["DSM", *(f"{name} {value}" for name, value in changes.items())])
    own = {name: changes.pop(name) for name in list(changes) if name in _FIELDS}
    return Setting(text, contrastive=True, loss=changes, **({"rescale": True} | own))


_FIELDS = {item.name for item in fields(Setting)}
_FIXED: Options = {"temperature": 0.05, "rescale": False}
_WHOLE: Options = _FIXED | {"memory": 256, "rho": 0.05}
_PAIRS: Options = {"weighting": "group", "level": 0.01, "joint_groups": True}
_BINS: Options = FROM_SCRATCH | {"consistency": "bins"}
_ADVERSARIAL: Options = FROM_SCRATCH | {"perturbation": "adversarial"}
_CANDIDATES = (
    Setting("CE"),
    _scaling(**_FIXED, rho=0.05, attention={}),
    _scaling(**_FIXED, rho=0.05, attention=FROM_SCRATCH),
    _scaling(**_FIXED, rho=0.05),
    Setting("DAM SAM radius 0.05", attention={}, rho=0.05),
    _scaling(**_WHOLE, attention=FROM_SCRATCH),
    _scaling(**_WHOLE, attention=FROM_SCRATCH, across_groups=True),
    _scaling(**_WHOLE, attention=_ADVERSARIAL),
    _scaling(**_WHOLE, attention=_ADVERSARIAL, across_groups=True),
    _scaling(**_WHOLE, attention=_BINS),
    _scaling(**_WHOLE, attention=FROM_SCRATCH, **_PAIRS),
    _scaling(**_WHOLE, attention=_BINS, **_PAIRS),
    _scaling(**_WHOLE | {"rho": 0.1}, attention=FROM_SCRATCH),
    _scaling(**_WHOLE),
    _scaling(**_WHOLE | {"rescale": True}, attention=FROM_SCRATCH, across_groups=True, floor=0.5),
    _scaling(temperature=0.05, rho=0.05, attention=FROM_SCRATCH, floor=0.1),
    _scaling(temperature=0.05, rho=0.05, attention={}, floor=0.1),
    Setting("SAM radius 0.05", rho=0.05),
    Setting("SAM radius 0.1", rho=0.1),
    Setting("DAM", attention={}),
    Setting("DAM no identity start", attention=FROM_SCRATCH),
    _scaling(temperature=0.05, floor=0.1),
    _scaling(**_FIXED),
    _scaling(**_FIXED, beta=0.3),
    _scaling(**_FIXED, attention={}),
    _scaling(**_FIXED, rho=0.1, attention={}),
    Setting("CE twice the epochs", budget=2),
    _scaling(**_WHOLE, attention=FROM_SCRATCH, across_groups=True, budget=2),
)
SEARCH = {setting.label.replace(" ", "-"): setting for setting in _CANDIDATES}
