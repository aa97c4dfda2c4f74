"""Distributionally robust weights against solvers that know nothing of their closed forms."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hdf_modules import HDFError
from hdf_modules.functional import dro_weights
from tests.support.reference import losses as reference

LEVELS = {
    "kl": [0.05, 1.0, 20.0],
    "kl-ball": [1e-6, 0.01, 0.3, 1.0, 1.9, 5.0],
    "chi2": [1e-6, 0.01, 0.3, 1.0, 2.5, 50.0],
    "cvar": [0.01, 0.07, 0.29, 0.5, 0.9, 1.0],
}
CASES = [(objective, level) for objective, levels in LEVELS.items() for level in levels]
VECTORS = {
    "normal": np.random.default_rng(0).normal(size=23),
    "negative": np.random.default_rng(1).normal(size=7) * 5 - 20,
    "ties at the top": np.array([2.0, 1.0, 2.0, 0.5, 1.0, 2.0, -1.0]),
    "ties below": np.array([1.0, 1.0, 3.0, 1.0, 2.0, 2.0]),
    "all equal": np.full(5, 0.7),
    "one": np.array([-3.0]),
    "two": np.array([0.1, 0.3]),
    "outlier": np.array([1e8, 1.0, 2.0, 3.0, 0.0]),
}
ORACLES = {
    "kl": reference.softmax,
    "kl-ball": reference.kl_ball,
    "chi2": reference.chi2_ball,
    "cvar": reference.cvar,
}


@pytest.fixture(scope="module")
def weights_of(device):
    def weights_of(values, objective, level):
        losses = torch.tensor(values, dtype=torch.float64, device=device)
        return dro_weights(losses, objective, level).numpy(force=True)

    return weights_of


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(("objective", "level"), CASES)
def test_weights_equal_the_root_or_linear_program(objective, level, name, weights_of):
    values = VECTORS[name]
    expected = ORACLES[objective](values, level)
    np.testing.assert_allclose(weights_of(values, objective, level), expected, atol=2e-9)


def clarabel(values, objective, level):
    cvxpy = pytest.importorskip("cvxpy")
    weights = cvxpy.Variable(len(values), nonneg=True)
    divergence = math.log(len(values)) - cvxpy.sum(cvxpy.entr(weights))
    gain, sets = values @ weights, [cvxpy.sum(weights) == 1]
    if objective == "kl":
        gain = gain - level * divergence
    elif objective == "kl-ball":
        sets.append(divergence <= level)
    elif objective == "chi2":
        sets.append(cvxpy.sum_squares(len(values) * weights - 1) <= 2 * len(values) * level)
    else:
        sets.append(weights <= 1 / (level * len(values)))
    with warnings.catch_warnings():  # at 1e-12 the solver may stop at "almost solved"
        warnings.simplefilter("ignore")
        tolerance = dict.fromkeys(["tol_gap_abs", "tol_gap_rel", "tol_feas"], 1e-12)
        cvxpy.Problem(cvxpy.Maximize(gain), sets).solve(cvxpy.CLARABEL, **tolerance)
    return weights.value


@pytest.mark.parametrize("name", ["normal", "negative", "ties at the top", "ties below", "one"])
@pytest.mark.parametrize(("objective", "level"), CASES)
def test_weights_equal_the_convex_program(objective, level, name, weights_of):
    values = VECTORS[name]
    expected = clarabel(values, objective, level)
    # A quadratic optimum is flat: the solver's weights are good to the root of its tolerance.
    np.testing.assert_allclose(weights_of(values, objective, level), expected, atol=2e-6)


@given(
    values=st.lists(
        st.floats(-1e6, 1e6, allow_subnormal=False) | st.integers(-3, 3).map(float),
        min_size=1,
        max_size=40,
    ),
    case=st.sampled_from(CASES),
)
def test_weights_are_a_feasible_distribution_that_no_permutation_or_shift_changes(
    values, case, weights_of
):
    objective, level = case
    n, weights = len(values), weights_of(values, objective, level)
    assert (weights >= 0).all()
    assert abs(weights.sum() - 1) < 1e-12
    if objective == "kl-ball":
        assert reference.divergence(weights) <= level + 1e-9
    if objective == "chi2":
        assert ((n * weights - 1) ** 2).sum() / (2 * n) <= level * (1 + 1e-6) + 1e-9
    if objective == "cvar":
        assert weights.max() <= max(1 / (level * n), 1 / n) * (1 + 1e-9) or level * n <= 1
    order = np.argsort(values)
    assert (np.diff(weights[order]) >= -1e-12).all(), "a larger loss weighs at least as much"
    np.testing.assert_allclose(
        weights_of(np.array(values)[order], objective, level), weights[order], atol=1e-9
    )


@pytest.mark.parametrize("objective", ["kl-ball", "chi2"])
def test_radius_zero_and_radius_just_above_are_uniform(objective, weights_of):
    for radius in (0.0, 1e-300, 1e-17, 1e-15):
        weights = weights_of(VECTORS["normal"], objective, radius)
        np.testing.assert_allclose(weights, 1 / 23, atol=1e-6)


@pytest.mark.parametrize(("objective", "level"), [("kl-ball", math.log(7 / 3)), ("chi2", 2 / 3)])
def test_weights_are_continuous_where_the_ties_take_everything(objective, level, weights_of):
    for factor in (1 - 1e-12, 1 - 1e-15, 1.0, 1 + 1e-15, 1 + 1e-12):
        weights = weights_of(VECTORS["ties at the top"], objective, level * factor)
        np.testing.assert_allclose(weights, [1 / 3, 0, 1 / 3, 0, 0, 1 / 3, 0], atol=2e-5)


@pytest.mark.parametrize(("objective", "level"), CASES)
def test_huge_and_minute_ranges_stay_finite(objective, level, weights_of):
    for scale in (1e30, 1e-30):
        weights = weights_of(VECTORS["normal"] * scale, objective, level)
        assert np.isfinite(weights).all()
        if objective != "kl":  # which alone depends on the scale
            expected = weights_of(VECTORS["normal"], objective, level)
            np.testing.assert_allclose(weights, expected, atol=1e-8)


def test_cvar_of_29_percent_of_100_covers_29(weights_of):
    weights = weights_of(np.arange(100.0), "cvar", 0.29)
    np.testing.assert_allclose(weights[71:], 1 / 29)
    assert not weights[:71].any()


def test_cvar_of_less_than_one_sample_is_the_maximum(weights_of):
    np.testing.assert_array_equal(weights_of([1.0, 3.0, 2.0], "cvar", 0.001), [0, 1, 0])


def test_weights_carry_no_gradient_and_are_danskins(device):
    losses = torch.randn(9, dtype=torch.float64, requires_grad=True, device=device)
    for objective, levels in LEVELS.items():
        weights = dro_weights(losses, objective, levels[1])
        assert not weights.requires_grad
        if objective == "kl":
            worst = levels[1] * (losses / levels[1]).logsumexp(0)
            (expected,) = torch.autograd.grad(worst, losses)
            torch.testing.assert_close(weights, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_losses_get_float32_weights(dtype, device):
    losses = torch.randn(13, device=device).to(dtype)
    for objective, levels in LEVELS.items():
        weights = dro_weights(losses, objective, levels[2])
        expected = dro_weights(losses.double(), objective, levels[2])
        assert weights.dtype == torch.float32
        torch.testing.assert_close(weights.double(), expected, atol=1e-7, rtol=1e-6)


def test_no_losses_no_weights(device):
    for objective, levels in LEVELS.items():
        assert dro_weights(torch.empty(0, device=device), objective, levels[0]).shape == (0,)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (
            [[0.0] * 3] * 2,
            r"losses: give one .*expected a floating point tensor of shape \(n,\), found",
        ),
        ([0] * 3, "losses: give one .*expected a floating point tensor .*int64"),
        ([0j] * 3, "losses: give one .*expected a floating point tensor .*complex64"),
        ([1.0, math.nan, 2.0, math.inf], "look at .*inf or NaN at index 1, 3$"),
        ([math.nan] * 30, "look at .*index 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 20 more$"),
    ],
)
def test_bad_losses_are_named(losses, message, device):
    with pytest.raises(HDFError, match=message):
        dro_weights(torch.tensor(losses, device=device), "kl", 1.0)


@pytest.mark.parametrize(
    ("objective", "level", "message"),
    [
        ("kl", 0.0, "level: expected a temperature > 0 for 'kl', found 0.0"),
        ("kl", math.inf, "level: expected a temperature > 0"),
        ("kl-ball", -0.1, "level: expected a radius >= 0 for 'kl-ball'"),
        ("chi2", math.nan, "level: expected a radius >= 0 for 'chi2'"),
        ("cvar", 0.0, r"level: expected a share in \(0, 1\]"),
        ("cvar", 1.01, r"level: expected a share in \(0, 1\]"),
        ("kl", None, "level: expected a temperature > 0 for 'kl', found None"),
        (
            "chi",
            1.0,
            "objective: did you .*expected one of 'kl', 'kl-ball', 'chi2', 'cvar', found 'chi'",
        ),
    ],
)
def test_bad_objectives_and_levels_are_named(objective, level, message, device):
    with pytest.raises(HDFError, match=message):
        dro_weights(torch.zeros(3, device=device), objective, level)
