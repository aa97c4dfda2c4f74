"""HeterogeneityAwareLoss on one process: its parts, base losses, weightings, state and errors."""

import copy
import math
import pickle
import re

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hdf_modules import HDFError, HeterogeneityAwareLoss
from hdf_modules.functional import dro_weights
from hdf_modules.loss import (
    KL,
    Chi2,
    CVaR,
    Fixed,
    GradientNorm,
    GroupDRO,
    KLBall,
    Ramp,
    RobustContrastive,
    Trim,
)
from tests.support.reference import losses as reference

B, K, D = 13, 5, 6


@pytest.fixture
def logits(device):
    return torch.randn(B, K, dtype=torch.float64, device=device, requires_grad=True)


@pytest.fixture
def target(device):
    return torch.randint(K, (B,), device=device)


@pytest.fixture
def features(device):
    return torch.randn(B, D, dtype=torch.float64, device=device, requires_grad=True)


@pytest.fixture
def weight(device):
    """Of the classes."""
    return torch.tensor([0.2, 3.0, 1.0, 0.5, 2.0], dtype=torch.float64, device=device)


def gradients(loss, *inputs):
    return torch.autograd.grad(loss, inputs)


HARD = [
    lambda weight: nn.CrossEntropyLoss(),
    lambda weight: nn.CrossEntropyLoss(reduction="sum"),
    nn.CrossEntropyLoss,
    lambda weight: nn.CrossEntropyLoss(ignore_index=1),
    lambda weight: nn.CrossEntropyLoss(label_smoothing=0.1),
    lambda weight: nn.CrossEntropyLoss(weight, ignore_index=2, label_smoothing=0.2),
    lambda weight: nn.NLLLoss(weight, ignore_index=0),
    lambda weight: nn.MultiMarginLoss(weight=weight),
]
SOFT = [
    lambda weight: nn.CrossEntropyLoss(weight, label_smoothing=0.1),
    lambda weight: nn.BCEWithLogitsLoss(pos_weight=weight),
    lambda weight: nn.MSELoss(),
    lambda weight: nn.KLDivLoss(),
    lambda weight: nn.KLDivLoss(reduction="batchmean"),
    nn.MultiLabelSoftMarginLoss,
]


def own_mean(base, logits, target):
    base = copy.deepcopy(base)
    base.reduction = "batchmean" if base.reduction == "batchmean" else "mean"
    return base(logits, target)


@pytest.mark.filterwarnings("ignore:reduction:UserWarning")  # KLDivLoss advises "batchmean"
@pytest.mark.parametrize("make", HARD + SOFT)
def test_without_weighting_it_is_the_base_losss_own_mean(make, logits, target, weight):
    base = make(weight)
    if make in SOFT:
        target = torch.randn_like(logits).softmax(1)
    expected = own_mean(base, logits, target)
    found = HeterogeneityAwareLoss(base)(logits, target)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, logits), gradients(expected, logits))


def test_dense_targets_with_ignored_elements_keep_their_mean(device, weight):
    logits = torch.randn(4, K, 3, dtype=torch.float64, requires_grad=True, device=device)
    target = torch.randint(K, (4, 3), device=device)
    base = nn.CrossEntropyLoss(weight, ignore_index=1)
    found, expected = HeterogeneityAwareLoss(base)(logits, target), base(logits, target)
    torch.testing.assert_close(found, expected)


def test_the_base_is_copied_and_its_buffers_move_along(logits, target, weight):
    base = nn.CrossEntropyLoss(weight, reduction="sum")
    criterion = HeterogeneityAwareLoss(base)
    assert base.reduction == "sum"
    criterion.float()
    assert base.weight.dtype == torch.float64
    assert criterion(logits.float(), target).dtype == torch.float32


def test_a_callable_base_is_used_as_it_is(logits, target):
    def focal(logits, target):
        log_p = -F.cross_entropy(logits, target, reduction="none")
        return -((1 - log_p.exp()) ** 2) * log_p

    found = HeterogeneityAwareLoss(focal)(logits, target)
    torch.testing.assert_close(found, focal(logits, target).mean())


WEIGHTINGS = [("kl", 0.7), ("kl-ball", 0.3), ("chi2", 0.5), ("cvar", 0.4)]
PARTS = {"kl": KL, "kl-ball": KLBall, "chi2": Chi2, "cvar": CVaR, "group": GroupDRO}


def part(name, level):
    return None if name is None else PARTS[name](level)


@pytest.mark.parametrize(("weighting", "level"), WEIGHTINGS)
def test_weighting_drops_ignored_samples_and_weighs_class_weighted_losses(
    weighting, level, logits, target, weight
):
    base = nn.CrossEntropyLoss(weight, ignore_index=2)
    found = HeterogeneityAwareLoss(base, weighting=part(weighting, level))(logits, target)
    kept = target != 2
    assert 0 < kept.sum() < B
    losses = weight[target[kept]] * F.cross_entropy(logits[kept], target[kept], reduction="none")
    expected = (dro_weights(losses, weighting, level) * losses).sum()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, logits), gradients(expected, logits))


@pytest.mark.parametrize("target_kind", ["hard", "soft"])
@pytest.mark.parametrize("weighting", [None, "cvar"])
def test_all_terms_equal_the_loops(weighting, target_kind, logits, target, features):
    level = None if weighting is None else 0.4
    if target_kind == "soft":
        target = torch.randn_like(logits).softmax(1)
    criterion = HeterogeneityAwareLoss(
        weighting=part(weighting, level),
        contrastive=RobustContrastive(temperature=0.3, eta=0.25),
        bottleneck=0.7,
    )
    with torch.no_grad():
        criterion.rescale(3.0)
    losses = F.cross_entropy(logits, target, reduction="none")
    uniform = torch.full_like(losses, 1 / B)
    weights = uniform if weighting is None else dro_weights(losses, weighting, level)
    expected = reference.heterogeneity_aware(
        losses,
        weights,
        features,
        target,
        lambda_ce=0.75,
        lambda_sc=criterion.balance.lambda_sc.double(),
        b=0.7,
        tau=0.3,
        eta=0.25,
    )
    found = criterion(logits, target, features)
    torch.testing.assert_close(found, expected)
    both = logits, features
    torch.testing.assert_close(gradients(found, *both), gradients(expected, *both))


def test_terms_add_up_to_the_loss(logits, target, features):
    criterion = HeterogeneityAwareLoss(weighting=KL(1.0))
    assert criterion.terms == {}
    loss = criterion(logits, target, features)
    terms = criterion.terms
    total = terms["lambda_ce"] * terms["classification"]
    total = total + terms["lambda_sc"] * (terms["contrastive"] + 0.1 * terms["bottleneck"])
    torch.testing.assert_close(total, loss.detach())
    assert all(not value.requires_grad and value.ndim == 0 for value in terms.values())
    losses = F.cross_entropy(logits, target, reduction="none")
    weights = dro_weights(losses, "kl", 1.0)
    torch.testing.assert_close(terms["effective_sample_size"], 1 / (weights**2).sum())


def test_effective_sample_size_of_the_plain_mean_is_the_batch(logits, target):
    criterion = HeterogeneityAwareLoss(nn.CrossEntropyLoss(ignore_index=2))
    criterion(logits, target)
    counted = (target != 2).sum().item()
    assert criterion.terms["effective_sample_size"].item() == pytest.approx(counted)


def test_ignored_samples_leave_the_contrastive_and_the_bottleneck_term(logits, target, features):
    criterion = HeterogeneityAwareLoss(nn.CrossEntropyLoss(ignore_index=2))
    kept = target != 2
    found = criterion(logits, target, features)
    expected = criterion(logits[kept], target[kept], features[kept])
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("weighting", [None, "kl", "group"])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_batches_with_nothing_to_learn_from_give_a_zero_with_a_graph(weighting, count, device):
    criterion = HeterogeneityAwareLoss(
        nn.CrossEntropyLoss(ignore_index=0), weighting=part(weighting, 0.5)
    )
    logits = torch.randn(count, K, requires_grad=True, device=device)
    features = torch.randn(count, D, requires_grad=True, device=device)
    target = torch.zeros(count, dtype=torch.int64, device=device)
    loss = criterion(logits, target, features, groups=target)
    assert loss == 0
    loss.backward()
    assert not logits.grad.any()
    assert not features.grad.any()


def test_one_sample_works(logits, target, features):
    for weighting, level in [(None, None), *WEIGHTINGS, ("group", 0.1)]:
        criterion = HeterogeneityAwareLoss(weighting=part(weighting, level))
        loss = criterion(logits[:1], target[:1], features[:1], target[:1])
        torch.testing.assert_close(loss, F.cross_entropy(logits[:1], target[:1]))


def test_a_callable_weighting_sees_detached_losses(logits, target):
    seen = []

    def square(losses):
        seen.append(losses)
        return losses**2 / (losses**2).sum()

    found = HeterogeneityAwareLoss(weighting=square)(logits, target)
    losses = F.cross_entropy(logits, target, reduction="none")
    assert not seen[0].requires_grad
    torch.testing.assert_close(found, (square(losses.detach()) * losses).sum())


def group_step(q, groups, losses, step):
    """One literal step of group DRO over the groups present, keeping their joint share."""
    present = sorted(set(groups.tolist()))
    means = {g: losses[groups == g].mean().item() for g in present}
    share = sum(q[g] for g in present)
    raised = {g: q[g] * math.exp(step * means[g]) for g in present}
    for g in present:
        q[g] = share * raised[g] / sum(raised.values())
    return sum(q[g] / share * losses[groups == g].mean() for g in present)


def test_group_weights_follow_the_literal_recursion_with_absent_groups(device):
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(0.3))
    q = [1 / 3] * 3
    for present in ([0, 1, 2], [0, 2], [1], [0, 1, 2]):
        logits = torch.randn(12, K, dtype=torch.float64, device=device)
        target = torch.randint(K, (12,), device=device)
        groups = torch.tensor((present * 12)[:12], device=device)
        losses = F.cross_entropy(logits, target, reduction="none")
        expected = group_step(q, groups, losses, 0.3)
        found = criterion(logits, target, groups=groups)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(criterion.weighting.log_q.exp(), logits.new_tensor(q))


def test_absent_groups_keep_their_share(device):
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(1.0))
    logits, target = torch.randn(6, K, device=device), torch.randint(K, (6,), device=device)
    criterion(logits, target, groups=torch.tensor([0, 1, 2, 0, 1, 2], device=device))
    before = criterion.weighting.log_q.exp()
    criterion(logits, target, groups=torch.tensor([0, 2, 2, 0, 0, 0], device=device))
    torch.testing.assert_close(criterion.weighting.log_q.exp()[1], before[1])


def test_group_weights_survive_losses_that_overflow_an_exponential(device):
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(1.0))
    groups = torch.tensor([0, 0, 1, 1], device=device)
    logits = torch.tensor([[0.0, 1e4]], device=device).repeat(4, 1)
    for _ in range(3):
        loss = criterion(logits, groups, groups=groups)
        assert loss.isfinite()
    assert criterion.weighting.log_q.isfinite().all()
    assert criterion.weighting.log_q.exp().sum().item() == pytest.approx(1)


def test_new_groups_enter_with_an_equal_share(device):
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(0.0))
    logits, first = torch.randn(2, K, device=device), torch.tensor([0, 1], device=device)
    criterion(logits, first, groups=first)
    criterion(logits, first, groups=torch.tensor([3, 1], device=device))
    expected = torch.full((4,), 0.25, device=device)
    torch.testing.assert_close(criterion.weighting.log_q.exp(), expected)


def test_evaluation_uses_the_group_shares_without_moving_them(logits, target):
    criterion = HeterogeneityAwareLoss(weighting=GroupDRO(0.5))
    criterion(logits, target, groups=target)
    before = criterion.weighting.log_q.clone()
    criterion.eval()
    criterion(logits, target, groups=target)
    assert torch.equal(criterion.weighting.log_q, before)


def test_the_state_reloads_into_a_fresh_loss_bit_for_bit(logits, target):
    def run(criterion, steps):
        out = []
        for step in steps:
            out.append(criterion(logits * (step + 1), target, groups=target % 3).item())
            criterion.rescale(float(step))
        return out

    def fresh():
        return HeterogeneityAwareLoss(weighting=GroupDRO(0.5))

    through, first = fresh(), fresh()
    expected = run(through, range(6))
    assert run(first, range(3)) == expected[:3]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    for second in (fresh(), first):
        second.load_state_dict(state)
        assert run(second, range(3, 6)) == expected[3:]


def test_rescale_follows_the_gradient_norm(device):
    criterion = HeterogeneityAwareLoss(balance=GradientNorm(2.0, 0.5, floor=0.1))

    def lambdas():
        return criterion.balance.lambda_ce.item(), criterion.balance.lambda_sc.item()

    assert lambdas() == (2.0, 0.5)
    criterion.rescale(3.0)
    assert lambdas() == pytest.approx((1.5, 0.125))
    criterion.rescale(torch.tensor(1.0, device=device))
    assert lambdas() == pytest.approx((1.0, 0.25))
    criterion.rescale(0.0)
    assert lambdas() == pytest.approx((0.2, 0.5)), "λ_CE stays at its floor"


def test_rescale_takes_what_clip_grad_norm_returns(logits, target, device):
    criterion = HeterogeneityAwareLoss(balance=GradientNorm(floor=0.0))
    weight = nn.Parameter(torch.eye(K, dtype=torch.float64, device=device))
    criterion(logits.detach() @ weight, target).backward()
    norm = nn.utils.clip_grad_norm_([weight], 1.0)
    criterion.rescale(norm)
    assert criterion.balance.lambda_ce.item() == pytest.approx(norm.item() / (norm.item() + 1))


@pytest.mark.parametrize("convert", [float, torch.tensor])
@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_norms_are_ignored_with_a_counted_warning(bad, convert, device):
    criterion = HeterogeneityAwareLoss()
    criterion.rescale(3.0)
    for count in (1, 2):
        with pytest.warns(UserWarning, match=rf"ignored, λ unchanged \({count} so far\)"):
            criterion.rescale(bad if convert is float else convert(bad, device=device))
    assert criterion.balance.lambda_ce == 0.75


def test_the_floor_keeps_the_classification_term_alive():
    """Without it λ ← λ g₀/(λ g₀ + 1) goes to 0 for every own gradient norm g₀ ≤ 1."""
    criterion = HeterogeneityAwareLoss()
    for _ in range(200):
        criterion.rescale(0.5 * criterion.balance.lambda_ce.item())
    assert criterion.balance.lambda_ce.item() == pytest.approx(0.5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("weighting", "level"), [(None, None), *WEIGHTINGS, ("group", 0.1)])
def test_half_precision_and_autocast_give_a_float32_loss(dtype, weighting, level, device):
    logits = torch.randn(B, K, device=device, dtype=dtype, requires_grad=True)
    features = torch.randn(B, D, device=device, dtype=dtype, requires_grad=True)
    target = torch.randint(K, (B,), device=device)
    criterion = HeterogeneityAwareLoss(weighting=part(weighting, level)).to(device)
    with torch.autocast(device.type, dtype):
        loss = criterion(logits, target, features, target)
    loss.backward()
    assert loss.dtype == torch.float32
    exact = HeterogeneityAwareLoss(weighting=part(weighting, level))
    wide = exact(
        logits.detach().cpu().double(), target.cpu(), features.cpu().double(), target.cpu()
    )
    torch.testing.assert_close(loss.detach().cpu().double(), wide, rtol=2e-2, atol=2e-2)
    assert logits.grad.isfinite().all()
    assert features.grad.isfinite().all()


@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # dynamo looks at it
def test_the_loss_runs_under_torch_compile(logits, target, features):
    """Exact weights take decisions that break the graph, but not the result."""
    criterion = HeterogeneityAwareLoss(weighting=Chi2(0.5))
    compiled = torch.compile(criterion, backend="eager")
    torch.testing.assert_close(
        compiled(logits, target, features), criterion(logits, target, features)
    )


def test_extra_repr_and_deepcopy_show_the_options():
    criterion = copy.deepcopy(HeterogeneityAwareLoss(contrastive=RobustContrastive(eta=0.3)))
    for text in (
        "temperature=0.05, eta=0.3, weight_gradient=False, across_groups",
        "bottleneck=0.1",
        "floor=0.5",
    ):
        assert text in repr(criterion)


OPTIONS = [
    (lambda: "dro", "weighting: expected one of None, 'kl', 'kl-ball', 'chi2', 'cvar', 'group'"),
    (lambda: CVaR, "weighting: name one .*expected None, a name, a part .*found the class CVaR"),
    (lambda: 0.5, "weighting: name one .*expected None, a name, a part .*found 0.5"),
    (lambda: Ramp(1.0, 0.5, steps=3), "weighting: name one .*expected None, a name, a part"),
    (lambda: KL(None), "temperature: expected a temperature > 0 for 'kl', found None"),
    (lambda: KLBall(-1), "radius: expected a radius >= 0 for 'kl-ball', found -1"),
    (lambda: CVaR(2.0), r"share: expected a share in \(0, 1\] for 'cvar'"),
    (lambda: CVaR(Ramp(1.0, 0.0, steps=3)), r"share: expected a share in \(0, 1\] for 'cvar'"),
    (lambda: KL(Ramp(1.0, 2.0, steps=-1)), "steps: expected an integer >= 0, found -1"),
    (lambda: GroupDRO(-1.0), "step: expected a finite number >= 0, found -1.0"),
    (lambda: Trim("kl", 1.0), r"share: expected a share in \[0, 1\)"),
    (lambda: Trim(Trim(None, 0.1), 0.1), "weighting: add their .*expected what a Trim can trim"),
]


@pytest.mark.parametrize(("make", "message"), OPTIONS)
def test_bad_weightings_are_named(make, message):
    with pytest.raises(HDFError, match=message):
        HeterogeneityAwareLoss(weighting=make())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([[0.0]], "adjustment: expected a floating point tens"),
        ([math.inf], "expected finite values"),
    ],
)
def test_bad_adjustments_are_named(values, message, device):
    with pytest.raises(HDFError, match=message):
        GroupDRO(adjustment=torch.tensor(values, device=device))


PARTS_THAT_FAIL = [
    (RobustContrastive, {"temperature": 0.0}, "temperature: expected a finite number > 0"),
    (RobustContrastive, {"eta": math.nan}, "eta: expected a finite number > 0"),
    (RobustContrastive, {"memory": -1}, "memory: expected an integer >= 0"),
    (RobustContrastive, {"block_size": 0}, "block_size: expected an integer >= 1"),
    (GradientNorm, {"alpha": -1.0}, "alpha: expected a finite number >= 0, found -1.0"),
    (GradientNorm, {"beta": math.inf}, "beta: expected a finite number >= 0"),
    (GradientNorm, {"floor": 2.0}, r"floor: expected a share in \[0, 1\]"),
    (GradientNorm, {"smoothing": 1.0}, r"smoothing: expected a share in \[0, 1\)"),
    (GradientNorm, {"unit": 0.0}, "unit: expected a finite number > 0"),
    (Fixed, {"lambda_ce": "10"}, "lambda_ce: expected a finite number >= 0"),
    (HeterogeneityAwareLoss, {"bottleneck": -0.1}, "bottleneck: expected a finite number >= 0"),
    (HeterogeneityAwareLoss, {"contrastive": 0.05}, "contrastive: expected RobustContrastive"),
    (HeterogeneityAwareLoss, {"balance": "measured"}, "balance: expected one of 'gradient-norm'"),
    (HeterogeneityAwareLoss, {"balance": GradientNorm}, "balance: expected GradientNorm\\(alpha"),
]


@pytest.mark.parametrize(("make", "options", "message"), PARTS_THAT_FAIL)
def test_bad_options_are_named(make, options, message):
    with pytest.raises(HDFError, match=message):
        make(**options)


FORMER = {
    "level": "weighting=CVaR",
    "alpha": "balance=GradientNorm",
    "temperature": "contrastive=RobustContrastive",
    "memory": "contrastive=RobustContrastive",
    "trim": "weighting=Trim",
    "joint_groups": "weighting=GroupDRO",
}


@pytest.mark.parametrize(("keyword", "spelling"), FORMER.items())
def test_keywords_of_the_first_release_are_told_their_new_spelling(keyword, spelling):
    with pytest.raises(HDFError) as caught:
        HeterogeneityAwareLoss(**{keyword: 1})
    assert str(caught.value).startswith(f"{keyword}: expected {spelling}(")


def test_names_stand_for_the_parts_with_their_defaults(logits, target):
    defaults = {"kl": 1.0, "kl-ball": math.log(2), "chi2": 0.5, "cvar": 0.5, "group": 0.01}
    for name, level in defaults.items():
        pair = [HeterogeneityAwareLoss(weighting=w) for w in (name, PARTS[name](level))]
        found, expected = (criterion(logits, target, groups=target) for criterion in pair)
        assert torch.equal(found, expected)


def test_a_part_serves_several_losses_each_with_its_own_state(logits, target, features):
    weighting, contrastive = GroupDRO(0.5), RobustContrastive(memory=20)
    first, second = (
        HeterogeneityAwareLoss(weighting=weighting, contrastive=contrastive) for _ in range(2)
    )
    first(logits, target, features, target)
    assert len(first.contrastive.memory.features) == B
    assert len(first.weighting.log_q) > 0
    for untouched in (second.weighting, second.contrastive.memory, weighting, contrastive.memory):
        assert all(
            getattr(untouched, name, target[:0]).numel() == 0 for name in ("log_q", "target")
        )


def test_without_the_contrastive_term_the_bottleneck_is_left(logits, target, features):
    criterion = HeterogeneityAwareLoss(contrastive=None, bottleneck=0.5, balance=Fixed(2.0, 0.5))
    loss = criterion(logits, target, features)
    unit = F.normalize(features.detach())
    expected = 2 * F.cross_entropy(logits, target) + 0.25 * unit.var(0, correction=0).sum()
    torch.testing.assert_close(loss, expected)
    assert criterion.terms["contrastive"] == 0


def test_fixed_weights_stay_whatever_the_norm():
    criterion = HeterogeneityAwareLoss(balance=Fixed(10, 0.1))
    criterion.rescale(3.0)
    assert criterion.balance.lambda_ce == 10
    assert criterion.balance.lambda_sc.item() == pytest.approx(0.1)


def broken(like):
    return like.new_tensor([0.0, math.nan, 0.0, math.inf])


CALLS = [
    ({"base": lambda x, y: x[:2, 0]}, {}, r"base: do not .*\(4,\), found shape \(2,\)"),
    ({"base": lambda x, y: 1.0}, {}, "base: .* found float"),
    (
        {"base": lambda x, y: x},
        {},
        r"base: average over .*expected shape \(4,\), found shape \(4, 5\)",
    ),
    ({"base": lambda x, y: y}, {}, "base: return them .*expected floating point losses"),
    (
        {"weighting": lambda x: x[:2]},
        {},
        r"weighting: return one .*expected weights of shape \(4,\)",
    ),
    ({"weighting": lambda x: x / 0}, {}, "weighting: expected finite weights"),
    ({}, {"logits": Tensor.long}, "logits: expected a floating point tensor, found torch.int64"),
    ({}, {"logits": Tensor.cfloat}, "logits: expected a floating point .* found torch.complex64"),
    ({}, {"logits": lambda x: None}, "logits: make one .*expected a tensor, found NoneType"),
    ({}, {"target": Tensor.tolist}, "target: make one .*expected a tensor, found list"),
    ({}, {"target": lambda y: y + 5}, "target: number .* from 0.*ids in 0 .. 4, .*found 5"),
    ({}, {"target": lambda y: y - 1}, "target: number .*expected class ids in 0 .. 4, .*found -1$"),
    ({}, {"target": lambda y: y[:3]}, "target: give both .*expected as many targets as logits"),
    ({}, {"features": lambda z: z[:3]}, "features: expected 4 rows, one for each sample"),
    (
        {},
        {"features": lambda z: z[:, 0]},
        "features: give one .*expected a floating point tensor of shape",
    ),
    ({}, {"features": Tensor.long}, "features: .*int64"),
    (
        {},
        {"features": lambda z: broken(z)[:, None]},
        "features: look .*finite values, .* index 1, 3$",
    ),
    ({"base": lambda x, y: broken(x)}, {}, "losses: look .*expected finite values.* index 1, 3$"),
    (
        {"weighting": GroupDRO(0.1)},
        {"groups": lambda g: None},
        "groups: pass groups=sources; expected group ids .*None",
    ),
    ({}, {"groups": lambda g: g[:3]}, "groups: expected 4 ids, one for each sample, found 3"),
    ({}, {"groups": lambda g: g - 1}, "groups: number the .*expected ids in 0 .. 65535, found -1"),
    (
        {},
        {"groups": lambda g: g + 2**16},
        "groups: number the .*expected ids in 0 .. 65535, found 65536",
    ),
    ({}, {"groups": Tensor.float}, r"groups: number the .*expected integer ids of shape \(B,\)"),
]


@pytest.mark.parametrize(("options", "changes", "message"), CALLS)
def test_bad_input_is_named(options, changes, message, device):
    ids = torch.zeros(4, dtype=torch.int64, device=device)
    call = {"logits": torch.zeros(4, K, device=device), "target": ids, "groups": ids}
    call["features"] = torch.zeros(4, D, device=device)
    for name, change in changes.items():
        call[name] = change(call[name])
    with pytest.raises(HDFError) as caught:
        HeterogeneityAwareLoss(**options)(**call)
    assert re.search(message, str(caught.value)), str(caught.value)


def test_float_targets_wrap_but_do_not_contrast(logits):
    criterion = HeterogeneityAwareLoss(nn.MSELoss(), weighting=CVaR(0.5))
    prediction = logits[:, 0]
    values = torch.randn_like(prediction)
    loss = criterion(prediction, values)
    assert loss > F.mse_loss(prediction, values)
    with pytest.warns(UserWarning, match="contrastive term is left out; give it labels="):
        criterion(prediction, values, logits)
    assert criterion.terms["contrastive"] == 0
    assert criterion.terms["bottleneck"] > 0
    torch.testing.assert_close(criterion.terms["classification"], loss.detach())
    criterion(prediction, values, logits)  # said once


def test_a_negative_gradient_norm_is_refused():
    with pytest.raises(HDFError, match="grad_norm: expected a finite number >= 0, found -1"):
        HeterogeneityAwareLoss().rescale(-1.0)
