"""The rows of the ablation table, and the candidates its hyper-parameters were chosen from."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

Options = dict[str, Any]

BASELINE, WHOLE = "ce", "hdf"


@dataclass(frozen=True)
class Setting:
    """What a row adds to the baseline, cross-entropy under AdamW.

    Args:
        label: of the table.
        attention: options of DistributionalAttention behind every stage, and ``only`` for one
            branch; None for none.
        stages: places of the attention among the backbone's stages; None for all.
        squeeze_excitation: the control of the same size in its place.
        rho: radius of SAM; 0 is AdamW alone.
        contrastive: whether the loss sees the features.
        rescale: whether the gradient norm sets the loss's balance.
        loss: options of HeterogeneityAwareLoss.
        groups: what the loss calls a group: ``"source"`` or ``"class"``.
        balanced: whether the base loss weighs a class by its inverse frequency.
        budget: epochs, as a multiple of the preset's.
        against: the row that this one is compared with; not part of the run.
    """

    label: str
    attention: Options | None = None
    stages: tuple[int, ...] | None = None
    squeeze_excitation: bool = False
    rho: float = 0.0
    contrastive: bool = False
    rescale: bool = False
    loss: Options = field(default_factory=dict)
    groups: str = "source"
    balanced: bool = False
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
DSM: Options = {"temperature": 0.05, "beta": 0.1}
LAST = (3,)  # attention behind the last stage alone
PAIRS: Options = {"weighting": "group", "level": 0.01, "joint_groups": True}

_BOTTLENECK_ALONE: Options = {"beta": 1e-6, "bottleneck": 0.01 / 1e-6}  # β b as in DSM, β nearly 0
_PLAIN_WEIGHTS: Options = {"eta": 1e3}  # so wide that w is constant: SupCon


def _dsm(label: str, *, rescale: bool = True, **loss: Any) -> Setting:
    return Setting(label, contrastive=True, rescale=rescale, loss=DSM | loss)


def _dro(label: str, weighting: str, level: float) -> Setting:
    return Setting(f"+ DRO, {label}", loss={"weighting": weighting, "level": level})


# What matters most comes first, because a seed's rows are run in this order.
ROWS: dict[str, Setting] = {
    BASELINE: Setting("CE"),
    WHOLE: replace(_dsm("HDF: DAM + DSM + SAM", **PAIRS), attention={}, stages=LAST, rho=RHO),
    "dsm-sam": replace(_dsm("HDF without DAM", **PAIRS), rho=RHO),
    "ce-balanced": Setting("CE, classes balanced", balanced=True),
    "dam": Setting("+ DAM", attention={}),
    "dsm": _dsm("+ DSM"),
    "sam": Setting("+ SAM", rho=RHO),
    "pairs": Setting("+ DRO, pairs of source and class", loss=PAIRS),
    "se": Setting("+ SE, same size as DAM", squeeze_excitation=True),
    "dam-released": Setting(
        "+ DAM, released semantics", attention={"identity_start": False, "consistency": "bins"}
    ),
    "dam-adversarial": Setting("+ DAM, adversarial", attention={"perturbation": "adversarial"}),
    "dam-temporal": Setting("+ DAM, temporal branch alone", attention={"only": "temporal"}),
    "dam-frequency": Setting("+ DAM, frequency branch alone", attention={"only": "frequency"}),
    "dsm-contrastive": _dsm("+ DSM, contrastive term alone", bottleneck=0.0),
    "dsm-plain": _dsm("+ DSM, contrastive term alone, w = 1", bottleneck=0.0, **_PLAIN_WEIGHTS),
    "dsm-bottleneck": _dsm("+ DSM, bottleneck alone", **_BOTTLENECK_ALONE),
    "dsm-fixed": _dsm("+ DSM, λ fixed", rescale=False),
    "kl": _dro("KL penalty", "kl", 1.0),
    "chi2": _dro("χ² ball", "chi2", 0.5),
    "cvar": _dro("CVaR", "cvar", 0.5),
    "group": _dro("groups of sources", "group", 0.01),
    "hdf-paper": replace(_dsm("HDF without group weights"), attention={}, stages=LAST, rho=RHO),
    "ce-long": Setting("CE, twice the epochs", budget=2),
}
# What the whole method is compared with beside the baseline: each does only a part of it.
PARTS = (BASELINE, "dsm-sam", "ce-balanced", "pairs", "sam", "dsm", "dam", "hdf-paper", "ce-long")


def _scaling(label: str = "", **changes: Any) -> Setting:
    """A candidate with the contrastive loss; options of no field are the loss's."""
    own = {name: changes.pop(name) for name in list(changes) if name in _FIELDS}
    said = [f"{name} {value}" for name, value in (changes | own).items()]
    text = " ".join(["DSM", *said])
    return Setting(label or text, contrastive=True, loss=changes, **({"rescale": True} | own))


def _groups(step: float, groups: str = "source", **options: Any) -> Setting:
    name = "pairs of source and class" if options else groups
    loss = {"weighting": "group", "level": step} | options
    return Setting(f"groups {name} step {step}", groups=groups, loss=loss)


_FIELDS = {item.name for item in fields(Setting)}
_WIDE: Options = {"temperature": 0.1, "eta": 0.3}
_LAST: Options = {"attention": {}, "stages": LAST}
_CANDIDATES = (
    Setting("CE"),
    _groups(0.01, joint_groups=True),
    _scaling(temperature=0.05),
    Setting("SAM radius 0.05", rho=0.05),
    _scaling(temperature=0.05, **PAIRS, rho=0.05),
    _scaling(temperature=0.05, **PAIRS, rho=0.05, attention={}),
    Setting("CE balanced", balanced=True),
    Setting("DAM", attention={}),
    _scaling(temperature=0.05, rho=0.05),
    _scaling(temperature=0.05, rho=0.05, **_LAST),
    _scaling(temperature=0.05, **PAIRS, rho=0.05, **_LAST),
    _scaling(temperature=0.05, rho=0.1),
    Setting("DAM last stage", **_LAST),
    Setting("SAM radius 0.1", rho=0.1),
    _scaling(temperature=0.05, beta=0.3),
    _scaling(temperature=0.05, memory=256),
    _scaling(temperature=0.1, beta=0.3),
    _scaling(**_WIDE, beta=0.1),
    _scaling(**_WIDE, beta=0.3),
    _scaling(temperature=0.05, rescale=False),
    _groups(0.0, joint_groups=True),
    _groups(0.05, joint_groups=True),
    _groups(0.01, "class"),
    _groups(0.01),
    Setting("DAM no identity start", attention={"identity_start": False}),
)
SEARCH = {setting.label.replace(" ", "-"): setting for setting in _CANDIDATES}
