"""Which losses can be wrapped, and what their targets may be."""

import copy

import pytest
import timm.loss
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hdf_modules import HDFError, HeterogeneityAwareLoss
from hdf_modules.loss import CVaR, GroupDRO, RobustContrastive

B, K, D = 9, 4, 5


@pytest.fixture
def logits(device):
    return torch.randn(B, K, device=device, dtype=torch.float64, requires_grad=True)


@pytest.fixture
def target(device):
    return torch.randint(K, (B,), device=device)


def focal(logits, target):
    """A focal loss as people write it: the mean at its end."""
    log_p = logits.log_softmax(1).gather(1, target[:, None])[:, 0]
    return ((1 - log_p.exp()) ** 2 * -log_p).mean()


def with_python(logits, target):
    """What vmap cannot enter: a number read from a tensor."""
    return F.cross_entropy(logits, target) * (2.0 if logits.sum().item() > 1e9 else 1.0)


def soft(target):
    return F.one_hot(target, K).double() * 0.7 + 0.3 / K


def values(target):
    return torch.stack([target - 1.5, target / 3], 1)


ONE_NUMBER = {
    "timm label smoothing": (timm.loss.LabelSmoothingCrossEntropy(0.1), None),
    "timm soft targets": (timm.loss.SoftTargetCrossEntropy(), soft),
    "focal": (focal, None),
    "sum": (lambda x, y: F.cross_entropy(x, y, reduction="sum"), None),
    "valence and arousal": (
        lambda x, y: (x[:, :2] - y).square().mean(),
        lambda y: y[:, None] - 1.5,
    ),
}


@pytest.mark.parametrize("name", ONE_NUMBER)
def test_a_loss_of_one_number_is_evaluated_sample_by_sample(name, logits, target):
    base, convert = ONE_NUMBER[name]
    target = convert(target) if convert else target
    rows = torch.stack([base(x[None], y[None]) for x, y in zip(logits, target, strict=True)])
    plain, worst = HeterogeneityAwareLoss(base), HeterogeneityAwareLoss(base, weighting=CVaR(1 / 3))
    for _ in range(2):  # the first call finds out, the second knows
        torch.testing.assert_close(plain(logits, target), rows.mean())
        torch.testing.assert_close(worst(logits, target), rows.topk(3).values.mean())
    for found, expected in zip(
        torch.autograd.grad(worst(logits, target), logits),
        torch.autograd.grad(rows.topk(3).values.mean(), logits),
        strict=True,
    ):
        torch.testing.assert_close(found, expected)
    assert plain(logits[:0], target[:0]) == 0


def test_what_vmap_cannot_enter_is_called_for_each_sample_with_a_warning(logits, target):
    with pytest.warns(UserWarning, match="base: one number .* slow"):
        found = HeterogeneityAwareLoss(with_python)(logits, target)
    torch.testing.assert_close(found, F.cross_entropy(logits, target))


def concordance(prediction, value):
    centred = prediction - prediction.mean(), value - value.mean()
    spread = sum(part.square().mean() for part in centred)
    return 1 - 2 * (centred[0] * centred[1]).mean() / (spread + 1e-8)


BATCH = {
    "concordance": lambda x, y: concordance(x[:, 0], y.double()),
    "weighted mean": lambda x, y: F.cross_entropy(x, y, weight=x.new_tensor([1, 2, 3, 4])),
    "spread": lambda x, y: x.std(),
}


@pytest.mark.parametrize("name", BATCH)
def test_a_loss_of_the_batch_as_a_whole_is_refused(name, logits, target):
    with pytest.raises(HDFError, match=r"base: .* the mean or the sum of theirs, found .* batch"):
        HeterogeneityAwareLoss(BATCH[name])(logits, target)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            nn.CrossEntropyLoss,
            r"base: write CrossEntropyLoss\(\); expected a loss: .*the class Cross",
        ),
        ("cross_entropy", "base: expected a loss: .*found 'cross_entropy'"),
        (CVaR, r"base: write CVaR\(\); expected a loss: .*found the class CVaR"),
    ],
)
def test_what_is_no_loss_is_refused_at_once(base, message):
    with pytest.raises(HDFError, match=message):
        HeterogeneityAwareLoss(base)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_ids_of_every_integer_type_count_alike(dtype, logits, target):
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(0.5, by_class=True))
    other = copy.deepcopy(criterion)
    groups = torch.arange(B, device=target.device) % 3 + 60
    found = criterion(logits, target.to(dtype), logits, groups.to(dtype))
    assert torch.equal(found, other(logits, target, logits, groups))


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("wrong", [[0, 1], ["happy"], "happy", 3])
def test_what_is_no_tensor_is_named(place, wrong, logits, target):
    call = [logits, target, logits, target]
    call[place] = wrong
    name = ("logits", "target", "features", "groups")[place]
    with pytest.raises(
        HDFError, match=f"{name}: make one .*torch.as_tensor.*expected a tensor, found"
    ):
        HeterogeneityAwareLoss()(*call)


NEGATIVE = [1.2, -0.2, 0.0, 0.0]
TOO_MUCH = [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("base", "row", "message"),
    [
        (None, NEGATIVE, r"target: expected soft labels >= 0 .* \[1.2, -0.2, 0.0, 0.0\] in row 0"),
        (None, TOO_MUCH, "target: expected soft labels >= 0 that sum to 1 in each row"),
        (lambda x, y: (x - y).square().mean(1), NEGATIVE, "labels= or contrastive=None"),
        (
            nn.BCEWithLogitsLoss(),
            NEGATIVE,
            r"target: pass labels= .*expected soft labels in \[0, 1\]",
        ),
    ],
)
def test_soft_labels_are_shares(base, row, message, logits):
    with pytest.raises(HDFError, match=message):
        HeterogeneityAwareLoss(base)(logits, logits.new_tensor([row] * B), logits)


def test_several_labels_are_positives_by_what_they_share(logits):
    several = (torch.rand(B, K, device=logits.device) > 0.5).to(logits)
    criterion = HeterogeneityAwareLoss(nn.BCEWithLogitsLoss())
    criterion(logits, several, logits)
    expected = F.binary_cross_entropy_with_logits(logits, several)
    torch.testing.assert_close(criterion.terms["classification"], expected.detach())
    assert criterion.terms["contrastive"] != 0


def test_regression_contrasts_by_the_labels_it_is_given(logits, target):
    values = torch.randn(B, 2, device=logits.device, dtype=logits.dtype)
    regression, classes = HeterogeneityAwareLoss(nn.MSELoss()), HeterogeneityAwareLoss()
    regression(logits[:, :2], values, logits, labels=target)
    classes(logits, target, logits)
    assert torch.equal(regression.terms["contrastive"], classes.terms["contrastive"])


def test_growing_states_stay_out_of_the_way_of_averages_and_copies(logits, target, device):
    model = nn.Linear(2, 2)
    # With at most 16 rows a GPU adds them in the same order every time.
    model.criterion = HeterogeneityAwareLoss(
        weighting=GroupDRO(0.5), contrastive=RobustContrastive(memory=7)
    )
    model.to(device)
    average = AveragedModel(model)
    for _ in range(3):
        model.criterion(logits, target, logits.detach(), target)
        average.update_parameters(model)
        twin = copy.deepcopy(model)
        twin.load_state_dict(model.state_dict())
        states = [m.criterion(logits, target, logits.detach(), target) for m in (model, twin)]
        assert torch.equal(*states)
    half = copy.deepcopy(model).half()
    assert half.criterion.contrastive.memory.features.dtype == torch.float16
    with pytest.raises(RuntimeError, match=r"Missing key.*criterion\.weighting\.log_q"):
        model.load_state_dict(
            {k: v for k, v in model.state_dict().items() if not k.endswith("log_q")}
        )


def test_terms_for_a_logger_are_plain_numbers(logits, target):
    criterion = HeterogeneityAwareLoss()
    assert criterion.log_dict() == {}
    criterion(logits, target, logits)
    logged = criterion.log_dict("train/")
    assert logged == {f"train/{k}": pytest.approx(float(v)) for k, v in criterion.terms.items()}
    assert all(type(value) is float for value in logged.values())
