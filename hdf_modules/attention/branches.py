"""The two branches of distributional attention as modules: parameters, and nothing else."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.attention.frequency import KERNEL_SIZE, SPREAD_RATE

NOISE_STD = 0.1  # of ν at initialisation


def gather(
    module: nn.Module, places: tuple[tuple[str | None, str], ...], dtype: torch.dtype
) -> list[Any]:
    """Return parameters by child and name, in a dtype; None stays None.

    Before anything else a module's ``getattr`` looks where parameters are not; for two dozen of
    them, every call, that is most of what attention costs a small clip. Replicas of DataParallel
    and parametrized modules do keep them there. Give the places as a literal: compiled models
    would check every part of a global one at every call.
    """
    children, found = module._modules, []
    for child, name in places:
        owner: Any = module if child is None else children[child]
        parameter = owner._parameters.get(name)
        if parameter is None:
            parameter = getattr(owner, name)
        if parameter is not None and parameter.dtype != dtype:
            parameter = parameter.to(dtype)
        found.append(parameter)
    return found


class TemporalBranch(nn.Module):
    """Learned weights of :func:`~hdf_modules.functional.temporal_gate`.

    Args:
        num_frames: T, the clip length that the weights are made for.
        bins: K, the number of channel bins.
        device, dtype: of the parameters.
    """

    def __init__(self, num_frames: int, bins: int, **factory: Any) -> None:
        super().__init__()
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

    def weights(self, dtype: torch.dtype) -> list[Tensor]:
        """Return the fields of TemporalWeights in the dtype of the computation."""
        places = (
            (None, "mean_weight"),
            (None, "peak_weight"),
            (None, "scale"),
            (None, "distance_scale"),
            ("mixing", "weight"),
            ("query", "weight"),
            ("query", "bias"),
            ("key", "weight"),
            ("key", "bias"),
            ("value", "weight"),
            ("value", "bias"),
        )
        return gather(self, places, dtype)


class FrequencyBranch(nn.Module):
    """Learned weights of :func:`~hdf_modules.functional.frequency_gate`.

    Args:
        dct_size: n, side of the DCT's neighbourhood, odd.
        reduction: r; above 1 the read-out is two convolutions with n²//r maps between them.
        perturbation: ``"learned"``, ``"adversarial"`` or ``None``.
        device, dtype: of the parameters.
    """

    def __init__(
        self, dct_size: int, reduction: int, perturbation: str | None, **factory: Any
    ) -> None:
        super().__init__()
        self.dct_size, self.reduction, self.perturbation = dct_size, reduction, perturbation
        maps = dct_size**2
        self.clean_weight = nn.Parameter(torch.empty(1, **factory))
        self.perturbed_weight = nn.Parameter(torch.empty(1, **factory))
        if perturbation is not None:
            self.noise = nn.Parameter(torch.empty(maps, **factory))
            self.noise_scale = nn.Parameter(torch.empty(maps, **factory))
            self.spread_scale = nn.Parameter(torch.empty(maps, **factory))
        self.slope = nn.Parameter(torch.empty(1, **factory))
        self.scale = nn.Parameter(torch.empty(maps, **factory))
        self.shift = nn.Parameter(torch.empty(maps, **factory))
        widths = [maps, 1] if reduction == 1 else [maps, maps // reduction, 1]
        self.readout = nn.ParameterList(
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

    def _perturbation(self, dtype: torch.dtype) -> tuple[Tensor | None, ...]:
        """Noise, its scale and the spread's per frequency, as the mode wants them."""
        adversarial = self.perturbation == "adversarial"
        if self.perturbation is None or (adversarial and not self.training):
            return None, None, None
        noise, noise_scale, spread_scale = gather(
            self, ((None, "noise"), (None, "noise_scale"), (None, "spread_scale")), dtype
        )
        if not adversarial:
            return noise, noise_scale, spread_scale
        worst = torch.cat([noise * noise_scale, SPREAD_RATE * spread_scale])
        length = torch.linalg.vector_norm(worst)
        worst = worst * (self.radius / length.clamp(min=self.radius))
        worst = 2 * worst.detach() - worst  # the same value, the reversed gradient
        offset, spread = worst.chunk(2)
        return offset, None, spread / SPREAD_RATE

    def weights(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Return the fields of FrequencyWeights in the dtype of the computation.

        The last two are the kernels of the read-out, of which the second may be absent.
        """
        mixture = gather(self, ((None, "clean_weight"), (None, "perturbed_weight")), dtype)
        fit = gather(self, ((None, "slope"), (None, "scale"), (None, "shift")), dtype)
        if self.reduction == 1:
            readout = [*gather(self, (("readout", "0"),), dtype), None]
        else:
            readout = gather(self, (("readout", "0"), ("readout", "1")), dtype)
        return [*mixture, *self._perturbation(dtype), *fit, *readout]
