"""State dicts that release 0.1.0 saved load, and training goes on with the values it had."""

from pathlib import Path

import pytest
import torch
from torch import nn

from hdf_modules import HeterogeneityAwareLoss
from hdf_modules.loss import Chi2, Fixed, GradientNorm, GroupDRO, Ramp, RobustContrastive, Trim

SAVED = Path(__file__).parents[1] / "golden/state_0_1_0"
WEIGHTINGS = {
    "chi2": Chi2(Ramp(0.1, 1.0, steps=4)),
    "group": Trim(GroupDRO(Ramp(0.0, 0.0, steps=4)), 0.2),
}


@pytest.mark.parametrize("name", WEIGHTINGS)
def test_a_loss_goes_on(name, device):
    saved = torch.load(SAVED / f"loss_{name}.pt", weights_only=True, map_location=device)
    criterion = HeterogeneityAwareLoss(
        nn.CrossEntropyLoss(weight=torch.zeros(3, device=device)),
        weighting=WEIGHTINGS[name],
        contrastive=RobustContrastive(memory=6, across_groups=True),
        balance=GradientNorm(smoothing=0.5),
    ).to(device)
    keys = list(saved["state"])
    criterion.load_state_dict(saved["state"])
    assert list(saved["state"]) == keys, "the caller's dictionary is left alone"
    torch.testing.assert_close(criterion(*saved["inputs"]), saved["loss"])


def test_a_loss_inside_a_model_goes_on(device):
    saved = torch.load(SAVED / "loss_chi2.pt", weights_only=True, map_location=device)
    model = nn.ModuleDict({"criterion": HeterogeneityAwareLoss(weighting="chi2")}).to(device)
    model.criterion = HeterogeneityAwareLoss(
        nn.CrossEntropyLoss(weight=torch.zeros(3, device=device)),
        contrastive=RobustContrastive(memory=6),
        weighting="chi2",
    ).to(device)
    model.load_state_dict({f"criterion.{key}": value for key, value in saved["state"].items()})
    assert len(model.criterion.contrastive.memory.features) == len(
        saved["state"]["memory.features"]
    )


def test_what_another_loss_has_no_place_for_is_named(device):
    state = torch.load(SAVED / "loss_chi2.pt", weights_only=True, map_location=device)["state"]
    base = nn.CrossEntropyLoss(weight=torch.zeros(3, device=device))
    criterion = HeterogeneityAwareLoss(base, weighting="chi2", contrastive=None, balance=Fixed())
    with pytest.raises(RuntimeError, match=r"Unexpected .*contrastive\.memory\.features"):
        criterion.to(device).load_state_dict(state)
    empty = {k: v[:0] if k.startswith("memory") and v.ndim else v for k, v in state.items()}
    criterion.load_state_dict(empty)
    assert torch.equal(criterion.balance.lambda_ce, state["scaling.lambda_ce"])
