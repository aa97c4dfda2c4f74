"""The loss notices features that have collapsed, once."""

import copy
import warnings

import pytest
import torch
from torch import nn

from hdf_modules import HeterogeneityAwareLoss
from hdf_modules.loss.per_sample import Plateau

N, K, D = 8, 4, 5


@pytest.fixture
def stuck(device):
    """Features that are all alike, and logits that say nothing."""
    features = 1 + torch.randn(N, D, device=device) / 50
    return torch.zeros(N, K, device=device), torch.arange(N, device=device) % K, features


def steps(criterion, batch, count):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for _ in range(count):
            criterion(*batch)
    return [str(one.message) for one in told]


@pytest.mark.parametrize("size", [1, 2, 7])
def test_mean_cosine_is_that_of_all_pairs(size, device):
    features = torch.randn(size, D, dtype=torch.float64, device=device)
    logits = torch.randn(size, K, device=device)
    criterion = HeterogeneityAwareLoss()
    criterion(logits, torch.arange(size, device=device) % K, features)
    pairs = [(i, j) for i in range(size) for j in range(size) if i != j]
    cosines = [torch.cosine_similarity(features[i], features[j], 0) for i, j in pairs]
    expected = sum(cosines) / len(pairs) if pairs else features.new_zeros(())
    torch.testing.assert_close(criterion.terms["mean_cosine"], expected)
    criterion = HeterogeneityAwareLoss()
    criterion(logits, torch.arange(size, device=device) % K)
    assert "mean_cosine" not in criterion.terms


def test_one_warning_names_a_collapse(stuck):
    criterion = HeterogeneityAwareLoss()
    assert not steps(criterion, stuck, Plateau.patience)
    (message,) = steps(criterion, stuck, 2 * Plateau.patience)
    assert "alike (mean cosine above 0.95)" in message
    assert "at chance for 200 steps" in message


@pytest.mark.parametrize("labels", [[0] * 7 + [1], [0, 1, 2, 3] * 2])
def test_chance_is_the_best_constant_prediction(labels, stuck, device):
    """A network that has learned how frequent the classes are has learned nothing else."""
    target = torch.tensor(labels, device=device)
    frequent = torch.bincount(target, minlength=K).float().log().clamp(min=-9)
    batch = (frequent.expand(N, K), target, stuck[2])
    assert steps(HeterogeneityAwareLoss(), batch, Plateau.patience + 1)
    better = frequent + torch.eye(K, device=device)[target] / 10
    assert not steps(HeterogeneityAwareLoss(), (better, target, stuck[2]), Plateau.patience + 1)


def test_one_step_off_the_plateau_starts_the_count_again(stuck):
    logits, target, features = stuck
    apart = features * torch.eye(K, device=features.device)[target].repeat(1, 2)[:, :D]
    criterion = HeterogeneityAwareLoss()
    for batch in (stuck, (logits, target, apart), stuck):
        assert not steps(criterion, batch, Plateau.patience - 1)


def test_only_training_on_cross_entropy_counts(stuck):
    evaluated, frozen = HeterogeneityAwareLoss().eval(), HeterogeneityAwareLoss()
    assert not steps(evaluated, stuck, Plateau.patience + 1)
    with frozen.frozen():
        assert not steps(frozen, stuck, Plateau.patience + 1)
    logits, target, features = stuck
    hot = 9 * torch.eye(K, device=target.device)[target]
    regression = HeterogeneityAwareLoss(nn.MSELoss())
    for _ in range(Plateau.patience + 1):
        regression(logits, hot, features, labels=target)
    assert evaluated.terms["mean_cosine"] > 0.95
    assert copy.deepcopy(evaluated).state_dict().keys() == regression.state_dict().keys()
