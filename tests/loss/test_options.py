"""The loss's further options: memory, trimming, ramps, groups, smoothing of g, second passes."""

import math

import pytest
import torch
import torch.nn.functional as F

from hdf_modules import HDFError, HeterogeneityAwareLoss
from hdf_modules.functional import dro_weights
from hdf_modules.loss import (
    Chi2,
    CVaR,
    Fixed,
    GradientNorm,
    GroupDRO,
    Ramp,
    RobustContrastive,
    Trim,
)
from tests.support.reference import losses as reference

B, K, D = 8, 4, 5


@pytest.fixture
def batch(device):
    def batch(size=B, seed=0):
        where = {"generator": torch.Generator(device).manual_seed(seed), "device": device}
        logits = torch.randn(size, K, dtype=torch.float64, **where)
        features = torch.randn(size, D, dtype=torch.float64, **where)
        target = torch.randint(K, (size,), **where)
        return logits, target, features

    return batch


def test_memory_holds_the_last_samples_and_not_the_batch_itself(batch):
    criterion = HeterogeneityAwareLoss(contrastive=RobustContrastive(0.5, memory=5))
    _, seen_target, seen_features = batch(0)
    for seed in range(4):
        logits, target, features = batch(3, seed)
        criterion(logits, target, features)
        memory = (seen_features[-5:], seen_target[-5:])
        expected = reference.contrastive(features, target, 0.5, 0.2, memory)
        torch.testing.assert_close(criterion.terms["contrastive"], expected)
        seen_features = torch.cat([seen_features, features])
        seen_target = torch.cat([seen_target, target])


def test_across_groups_the_positives_are_those_of_other_groups_also_in_the_memory(device, batch):
    criterion = HeterogeneityAwareLoss(
        contrastive=RobustContrastive(0.5, memory=5, across_groups=True)
    )
    _, target, features = batch(0)
    seen = features, target, target
    for seed in range(4):
        logits, target, features = batch(4, seed)
        groups = torch.tensor([0, 0, 1, seed % 3], device=device)
        criterion(logits, target, features, groups)
        memory = tuple(rows[-5:] for rows in seen)
        expected = reference.contrastive(features, target, 0.5, 0.2, memory, groups)
        torch.testing.assert_close(criterion.terms["contrastive"], expected)
        rows = zip(seen, (features, target, groups), strict=True)
        seen = tuple(torch.cat(pair) for pair in rows)


def test_across_groups_needs_groups(batch):
    with pytest.raises(
        HDFError, match=r"groups: pass groups=sources; expected ids .* for across_groups=True"
    ):
        HeterogeneityAwareLoss(contrastive=RobustContrastive(across_groups=True))(*batch())


def test_a_frozen_call_sees_the_same_memory_groups_and_ramp_as_the_first(device, batch):
    criterion = HeterogeneityAwareLoss(
        contrastive=RobustContrastive(memory=5), weighting=GroupDRO(Ramp(0.0, 1.0, steps=3))
    )
    criterion(*batch(3, 0), groups=torch.tensor([0, 1, 2], device=device))
    call = (*batch(3, 1), torch.tensor([0, 1, 1], device=device))
    first = criterion(*call)
    state = {name: value.clone() for name, value in criterion.state_dict().items()}
    with criterion.frozen():
        again = criterion(*call)
    assert torch.equal(first, again)
    assert criterion.terms["sharpness_gap"] == 0
    for name, value in criterion.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)


def test_sharpness_gap_is_the_rise_of_the_loss_at_one_lambda(batch):
    criterion = HeterogeneityAwareLoss()
    logits, target, features = batch()
    criterion(logits, target, features)
    criterion.rescale(3.0)
    first = HeterogeneityAwareLoss(balance=Fixed(0.75, 0.025))(logits, target, features)
    with criterion.frozen():
        second = criterion(logits * 2, target, features + 0.1)
    torch.testing.assert_close(criterion.terms["sharpness_gap"].double(), second - first)


def test_memory_ramp_and_moving_average_resume_bit_for_bit(device, batch):
    def fresh():
        return HeterogeneityAwareLoss(
            contrastive=RobustContrastive(memory=7, across_groups=True),
            weighting=Chi2(Ramp(0.1, 2.0, steps=5)),
            balance=GradientNorm(smoothing=0.9),
        )

    def run(criterion, steps):
        losses = []
        for step in steps:
            groups = torch.tensor([0, 1, step], device=device)
            losses.append(criterion(*batch(3, step), groups).item())
            criterion.rescale(1.0 + step)
        return losses

    through, first, second = fresh(), fresh(), fresh()
    expected = run(through, range(8))
    run(first, range(4))
    second.load_state_dict(first.state_dict())
    assert run(second, range(4, 8)) == expected[4:]


def test_evaluation_neither_fills_the_memory_nor_moves_the_ramp(batch):
    criterion = HeterogeneityAwareLoss(
        contrastive=RobustContrastive(memory=5), weighting=CVaR(Ramp(1.0, 0.5, steps=2))
    ).eval()
    criterion(*batch())
    assert len(criterion.contrastive.memory.features) == 0
    assert criterion.weighting.level.steps_taken == 0


def test_trimming_gives_the_largest_losses_no_weight(batch):
    logits, target, _ = batch(10)
    losses = F.cross_entropy(logits, target, reduction="none")
    kept = losses.argsort()[:7]
    for weighting, level in ((None, None), ("chi2", 0.5)):
        criterion = HeterogeneityAwareLoss(weighting=Trim(weighting and Chi2(level), 0.3))
        inner = losses[kept]
        weights = dro_weights(inner, "chi2", level) if weighting else torch.full_like(inner, 1 / 7)
        torch.testing.assert_close(criterion(logits, target), (weights * inner).sum())


def test_level_ramps_linearly_and_stays_at_its_end(batch):
    criterion = HeterogeneityAwareLoss(weighting=CVaR(Ramp(1.0, 0.5, steps=2)))
    logits, target, _ = batch()
    losses = F.cross_entropy(logits, target, reduction="none")
    for level in (1.0, 0.75, 0.5, 0.5):
        expected = (dro_weights(losses, "cvar", level) * losses).sum()
        torch.testing.assert_close(criterion(logits, target), expected)


def test_adjustment_is_added_to_the_losses_of_the_groups(device, batch):
    adjustment = torch.tensor([0.0, 2.0], device=device)
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(0.5, adjustment=adjustment))
    logits, target, _ = batch(6)
    groups = torch.tensor([0, 0, 1, 1, 2, 2], device=device)
    criterion(logits, target, groups=groups)
    losses = F.cross_entropy(logits, target, reduction="none").reshape(3, 2).mean(1)
    expected = (0.5 * (losses + torch.tensor([0.0, 2.0, 0.0], device=device))).log_softmax(0)
    torch.testing.assert_close(criterion.weighting.log_q, expected)
    assert "weighting.adjustment" in criterion.state_dict()


def test_adjustment_and_step_size_resume_with_the_state(device, batch):
    adjustment = torch.tensor([0.0, 2.0], device=device)
    first = HeterogeneityAwareLoss(
        weighting=GroupDRO(Ramp(0.5, 1.0, steps=4), adjustment=adjustment)
    )
    second = HeterogeneityAwareLoss(weighting=GroupDRO(Ramp(0.0, 0.0, steps=4)))
    second.load_state_dict(first.state_dict())
    for seed in range(6):
        call = (*batch(6, seed), torch.tensor([0, 0, 1, 1, 2, 2], device=device))
        assert torch.equal(first(*call), second(*call))
        assert torch.equal(first.weighting.log_q, second.weighting.log_q)
    assert first.weighting.log_q.std() > 0.1


def test_joint_groups_are_pairs_of_group_and_class(device, batch):
    logits, target, _ = batch()
    groups = torch.arange(B, device=device) % 2
    joint = HeterogeneityAwareLoss(weighting=GroupDRO(0.5, by_class=True))
    plain = HeterogeneityAwareLoss(weighting=GroupDRO(0.5))
    torch.testing.assert_close(
        joint(logits, target, groups=groups), plain(logits, target, groups=groups * K + target)
    )


def test_shares_of_the_weight_per_class_and_group(device, batch):
    criterion = HeterogeneityAwareLoss(weighting=CVaR(0.5))
    logits, target, _ = batch()
    groups = torch.arange(B, device=device) % 3
    criterion(logits, target, groups=groups)
    weights = dro_weights(F.cross_entropy(logits, target, reduction="none"), "cvar", 0.5)
    for name, ids in (("class", target), ("group", groups)):
        for index, share in enumerate(criterion.shares[name]):
            torch.testing.assert_close(share, weights[ids == index].sum())
    torch.testing.assert_close(criterion.terms["largest_weight"], weights.max())


def test_g_is_smoothed_and_measured_in_its_unit():
    criterion = HeterogeneityAwareLoss(balance=GradientNorm(smoothing=0.75, unit=10.0))
    criterion.rescale(20.0)
    assert criterion.balance.grad_norm == 2.0
    criterion.rescale(60.0)
    assert criterion.balance.grad_norm == 3.0
    assert criterion.balance.lambda_ce.item() == pytest.approx(0.75)
    with pytest.warns(UserWarning, match="ignored"):
        criterion.rescale(math.inf)
    assert criterion.balance.grad_norm == 3.0


def test_a_memory_refuses_another_kind_of_target_or_width(batch):
    logits, target, features = batch()
    criterion = HeterogeneityAwareLoss(contrastive=RobustContrastive(memory=4))
    criterion(logits, target, features)
    with pytest.raises(
        HDFError, match=r"target: keep one .*expected rows of shape .* as in the memory"
    ):
        criterion(logits, F.one_hot(target, K).double(), features)
    with pytest.raises(HDFError, match=r"features: keep one .*expected rows of shape"):
        criterion(logits, target, features[:, :2])
