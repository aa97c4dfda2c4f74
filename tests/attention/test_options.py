"""What each option of DistributionalAttention promises."""

import copy
import io
import pickle

import pytest
import torch

from hdf_modules import DistributionalAttention
from hdf_modules.attention import Layout
from hdf_modules.attention.functional import SPREAD_RATE
from hdf_modules.functional import clip_statistics
from tests.support.attention import randomised

PERTURBATIONS = ["learned", "adversarial", None]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_identity_start_changes_no_bit(dtype, perturbation, device):
    module = DistributionalAttention(5, 4, perturbation=perturbation, device=device)
    x = torch.randn(2, 5, 4, 6, 3, device=device).to(dtype).requires_grad_()
    y = module(x)
    assert torch.equal(y, x)
    grad = torch.randn_like(y)
    y.backward(grad)
    assert torch.equal(x.grad, grad)
    assert module.strength.grad.abs() > 0
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.parameters())


def test_without_identity_start_it_is_the_released_mixture(device):
    module = DistributionalAttention(5, 4, identity_start=False, device=device)
    x = torch.randn(2, 5, 4, 6, 3, device=device)
    temporal, frequency = module.gates(x)
    gate = 0.5 * (0.8 * (1 + temporal[:, :, None, None]) + 0.3 * (1 + frequency[:, None]))
    torch.testing.assert_close(module(x), x * gate[:, None])


def adversarial_pair(device, **changes):
    """The same weights with learned and with adversarial perturbation."""
    where = {"dtype": torch.float64, "device": device}
    learned = randomised(DistributionalAttention(5, 4, **where))
    adversarial = DistributionalAttention(5, 4, perturbation="adversarial", **where)
    adversarial.load_state_dict(learned.state_dict())
    for module in (learned, adversarial):
        for name, value in changes.items():
            torch.nn.init.constant_(getattr(module.frequency, name), value)
    return learned, adversarial


NOISE = ("noise", "noise_scale", "spread_scale")


def acting(module):
    """What is added per frequency, and per unit of spread."""
    noise, noise_scale, spread_scale = module.frequency.perturbing()
    assert noise_scale is None
    return torch.cat([noise, SPREAD_RATE * spread_scale])


def test_inside_the_ball_only_the_noise_gradient_is_reversed(device):
    learned, adversarial = adversarial_pair(device, noise=0.09, noise_scale=1.0, spread_scale=0.3)
    x = torch.randn(2, 5, 4, 6, 3, dtype=torch.float64, device=device)
    for module in (learned, adversarial):
        module(x).square().sum().backward()
    assert torch.equal(learned(x), adversarial(x))
    for (name, ours), theirs in zip(
        adversarial.named_parameters(), learned.parameters(), strict=True
    ):
        sign = -1 if name.rpartition(".")[2] in NOISE else 1
        torch.testing.assert_close(ours.grad, sign * theirs.grad, msg=name)


def test_the_acting_perturbation_stays_in_the_ball_and_parameters_are_not_edited(device):
    _, module = adversarial_pair(device, noise=5.0, noise_scale=2.0, spread_scale=7.0)
    before = copy.deepcopy(module.state_dict())
    module(torch.randn(2, 5, 4, 6, 3, dtype=torch.float64, device=device))
    length = acting(module).norm()
    torch.testing.assert_close(length, torch.tensor(0.7, dtype=torch.float64, device=device))
    assert all(torch.equal(before[k], v) for k, v in module.state_dict().items())


def test_ascent_on_the_noise_raises_the_loss_and_ends_on_the_ball(device):
    options = {"perturbation": "adversarial", "identity_start": False}
    module = DistributionalAttention(5, 4, **options, device=device)
    x, target = torch.randn(2, 2, 5, 4, 6, 3, device=device)
    noise = [getattr(module.frequency, name) for name in NOISE]
    optimizer = torch.optim.SGD(noise, lr=0.5)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (module(x) - target).square().sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] > losses[0]
    assert acting(module).norm() <= 0.7 * (1 + 1e-6)


def test_adversarial_is_off_in_eval(device):
    _, module = adversarial_pair(device, noise=5.0)
    x = torch.randn(2, 5, 4, 6, 3, dtype=torch.float64, device=device)
    off = DistributionalAttention(5, 4, perturbation=None, dtype=torch.float64, device=device)
    off.load_state_dict({k: v for k, v in module.state_dict().items() if k in off.state_dict()})
    assert not torch.equal(module(x), off(x))
    assert torch.equal(module.eval()(x), off(x))


@pytest.mark.parametrize("frames", [1, 2, 15, 16, 17, 64])
def test_any_clip_length(frames, device):
    module = randomised(DistributionalAttention(6, 16, bins=5, device=device))
    x = torch.randn(2, 6, frames, 5, 4, requires_grad=True, device=device)
    y = module(x)
    y.sum().backward()
    assert y.shape == x.shape
    assert x.grad.isfinite().all()


def test_a_constant_clip_has_one_gate_at_every_length(device):
    module = randomised(DistributionalAttention(6, 16, device=device))
    clips = [torch.ones(1, 6, frames, 5, 4, device=device) for frames in (1, 16, 40)]
    gates = [module.gates(x)[0] for x in clips]
    # Resampling a constant is exact; the gate itself varies over the 16 positions.
    torch.testing.assert_close(gates[0].mean(), gates[1][:, 7:9].mean())
    torch.testing.assert_close(gates[2].mean(), gates[1].mean(), rtol=0.02, atol=0)


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e6, 1e-30])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5, 6), (1, 1, 1, 1, 1), (2, 1, 3, 1, 4)])
@pytest.mark.parametrize("perturbation", PERTURBATIONS)
def test_degenerate_input_gives_finite_values_and_gradients(value, shape, perturbation, device):
    options = {"bins": 6, "perturbation": perturbation, "device": device}
    module = randomised(DistributionalAttention(shape[1], 4, **options))
    x = torch.full(shape, value, requires_grad=True, device=device)
    y = module(x)
    (y / max(abs(value), 1)).sum().backward()
    assert y.isfinite().all()
    assert x.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_among_equal_maxima_the_first_receives_the_gradient(device):
    x = torch.zeros(1, 2, 1, 3, 3, requires_grad=True, device=device)
    _, peak, _ = clip_statistics(x.transpose(1, 2), 1, x.dtype)
    peak.sum().backward()
    assert x.grad[0, 0, 0, 0, 0] == 1
    assert x.grad.sum() == 1


@pytest.mark.parametrize(
    ("module_dtype", "dtype"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.bfloat16),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
    ],
)
def test_output_has_the_dtype_of_the_input(module_dtype, dtype, device):
    exact = randomised(DistributionalAttention(6, 4, device=device)).to(module_dtype)
    module = copy.deepcopy(exact)
    exact.double()
    x = torch.randn(2, 6, 4, 9, 7, device=device).to(dtype).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert module.gate(x).dtype in (torch.float32, torch.float64)
    # Computed in float32 or better, so the gate is as good as the weights.
    torch.testing.assert_close(module.gate(x).double(), exact.gate(x.double()), rtol=0, atol=2e-6)


def test_construction_keywords(device):
    module = DistributionalAttention(3, 4, device="meta", dtype=torch.float64)
    assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.float64)}
    module = module.to_empty(device=device)
    torch.manual_seed(3)
    module.reset_parameters()
    torch.manual_seed(3)
    other = DistributionalAttention(3, 4, dtype=torch.float64, device=device)
    x = torch.randn(1, 3, 4, 5, 5, dtype=torch.float64, device=device)
    assert all(p.isfinite().all() for p in module.parameters())
    assert torch.equal(module(x), other(x))
    assert list(module.buffers()) == []


def test_repr_shows_the_options():
    text = repr(DistributionalAttention(3, 4, layout=Layout("(b t) (h w) c", grid=(2, 3))))
    assert "3, num_frames=4, layout=Layout('(b t) (h w) c', grid=(2, 3))" in text
    assert "grid=(2, 3)" in text
    assert "perturbation='learned'" in text


def test_deepcopy_pickle_and_save(device):
    module = randomised(DistributionalAttention(3, 4, device=device))
    x = torch.randn(1, 3, 4, 5, 5, device=device)
    expected = module(x)
    assert torch.equal(copy.deepcopy(module)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), expected)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    other = DistributionalAttention(3, 4, device=device)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(other(x), expected)
