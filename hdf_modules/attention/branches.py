"""The two branches of distributional attention as modules.

They are called, and call their linear maps: hooks, pruning, parametrizations, adapters and other
modules put in the place of a linear map act as they do everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from hdf_modules.attention.functional import SPREAD_RATE, frequency_gate, readout, temporal_gate
from hdf_modules.attention.weights import FrequencyWeights, TemporalWeights

KERNEL_SIZE = 7  # of the read-out convolution
NOISE_STD = 0.1  # of ν at initialisation


def in_dtype_of(values: Tensor, module: nn.Module, *inputs: Tensor) -> Tensor:
    """Call a module with its floating-point parameters in the dtype of these values."""
    others = {
        name: parameter.to(values.dtype)
        for name, parameter in module.named_parameters()
        if parameter.dtype != values.dtype and parameter.is_floating_point()
    }
    return functional_call(module, others, inputs) if others else module(*inputs)


class TemporalBranch(nn.Module):
    """`temporal_gate` with its learned weights.

    Args:
        num_frames: T, the clip length that the weights are made for.
        bins: K, the number of channel bins.
        consistency: axis of the consistency term, ``"time"`` or ``"bins"``.
        device, dtype: of the parameters.
    """

    def __init__(self, num_frames: int, bins: int, consistency: str, **factory: Any) -> None:
        super().__init__()
        self.consistency = consistency
        self.mean_weight = nn.Parameter(torch.empty(1, **factory))
        self.peak_weight = nn.Parameter(torch.empty(1, **factory))
        self.scale = nn.Parameter(torch.empty(num_frames, bins, **factory))
        self.distance_scale = nn.Parameter(torch.empty(num_frames, bins, **factory))
        self.mixing = nn.Linear(num_frames, num_frames, bias=False, **factory)
        self.query = nn.Linear(bins, bins, **factory)
        self.key = nn.Linear(bins, bins, **factory)
        self.value = nn.Linear(bins, bins, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set γ = 1, δ = 0, α_p = β_p = ½; the linear maps as ``torch.nn.Linear`` does."""
        nn.init.constant_(self.mean_weight, 0.5)
        nn.init.constant_(self.peak_weight, 0.5)
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.distance_scale)
        for linear in (self.mixing, self.query, self.key, self.value):
            linear.reset_parameters()

    def forward(self, mean: Tensor, peak: Tensor) -> Tensor:
        """Return g, (batch, time), of the statistics (batch, time, K)."""
        weights = TemporalWeights(
            self.mean_weight,
            self.peak_weight,
            self.scale,
            self.distance_scale,
            self.mixing,
            self.query,
            self.key,
            self.value,
        )
        return temporal_gate(mean, peak, weights, self.consistency)


class Readout(nn.ParameterList):
    """Kernels of the read-out convolutions, one or two."""

    __call__ = nn.Module.__call__  # which lists of parameters take away

    def __init__(self, kernels: Iterable[nn.Parameter]) -> None:
        super().__init__(kernels)
        # The name of a child that is not there: code that sorts parameters by leaf modules (the
        # policies of TSN and TSM) fails at leaves of a kind that it does not know.
        self.add_module("child", None)

    def forward(self, maps: Tensor) -> Tensor:
        """Return one map of (batch, n², height, width)."""
        return readout(maps, [self[i] for i in range(len(self))])  # see `_weights`


class FrequencyBranch(nn.Module):
    """`frequency_gate` with its learned weights.

    Args:
        dct_size: n, side of the DCT's neighbourhood, odd.
        reduction: r; above 1 the read-out is two convolutions with n²//r maps between them.
        perturbation: ``"learned"``, ``"adversarial"`` or ``None``.
        device, dtype: of the parameters.
    """

    noise: nn.Parameter
    noise_scale: nn.Parameter
    spread_scale: nn.Parameter

    def __init__(
        self, dct_size: int, reduction: int, perturbation: str | None, **factory: Any
    ) -> None:
        super().__init__()
        self.dct_size, self.reduction, self.perturbation = dct_size, reduction, perturbation
        maps = dct_size**2
        self.clean_weight = nn.Parameter(torch.empty(1, **factory))
        self.perturbed_weight = nn.Parameter(torch.empty(1, **factory))
        for name in ("noise", "noise_scale", "spread_scale"):
            absent = perturbation is None
            self.register_parameter(
                name, None if absent else nn.Parameter(torch.empty(maps, **factory))
            )
        self.slope = nn.Parameter(torch.empty(1, **factory))
        self.scale = nn.Parameter(torch.empty(maps, **factory))
        self.shift = nn.Parameter(torch.empty(maps, **factory))
        widths = [maps, 1] if reduction == 1 else [maps, maps // reduction, 1]
        self.readout = Readout(
            nn.Parameter(torch.empty(after, before, KERNEL_SIZE, KERNEL_SIZE, **factory))
            for before, after in pairwise(widths)
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set α_d = β_d = κ = ½, ν ~ 0.1·N(0,1), a = γ_f = 1, b = β_f = 0; kernels as Conv2d."""
        for half in (self.clean_weight, self.perturbed_weight, self.slope):
            nn.init.constant_(half, 0.5)
        if self.perturbation is not None:
            nn.init.normal_(self.noise, std=NOISE_STD)
            nn.init.ones_(self.noise_scale)
            nn.init.zeros_(self.spread_scale)
        nn.init.ones_(self.scale)
        nn.init.zeros_(self.shift)
        for kernel in self.readout:
            nn.init.kaiming_uniform_(kernel, a=math.sqrt(5))

    @property
    def radius(self) -> float:
        """Radius of the ball of adversarial perturbations: 0.1·n, the size of ν at the start."""
        return NOISE_STD * self.dct_size

    def forward(self, total: Tensor) -> Tensor:
        """Return f of the channel sums m, both (batch, height, width)."""
        weights = FrequencyWeights(
            self.clean_weight,
            self.perturbed_weight,
            *self.perturbing(),
            self.slope,
            self.scale,
            self.shift,
            self.readout,
        )
        return frequency_gate(total, weights, self.dct_size)

    def perturbing(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Return the weights ν, a and b of the perturbation that acts.

        An adversarial one is off in evaluation; its parameters get the reversed gradient, and what
        acts, (ν·a, λ_w·b) over all frequencies, is projected onto the ball.
        """
        if self.perturbation != "adversarial":
            return self.noise, self.noise_scale, self.spread_scale
        if not self.training:
            return None, None, None
        worst = torch.cat([self.noise * self.noise_scale, SPREAD_RATE * self.spread_scale])
        length = torch.linalg.vector_norm(worst)
        worst = worst * (self.radius / length.clamp(min=self.radius))
        worst = 2 * worst.detach() - worst  # the same value, the reversed gradient
        offset, spread = worst.chunk(2)
        return offset, None, spread / SPREAD_RATE
