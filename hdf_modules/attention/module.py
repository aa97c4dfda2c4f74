"""Distributional attention: one multiplicative gate per frame and position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.attention import functional, operator
from hdf_modules.attention.branches import FrequencyBranch, Readout, TemporalBranch, in_dtype_of
from hdf_modules.attention.layout import (
    BoundLayout,
    Layout,
    as_layout,
    as_layout_keywords,
    is_grid,
    kind_of,
)
from hdf_modules.attention.weights import AttentionOptions, AttentionWeights, MixtureWeights
from hdf_modules.errors import HDFError, at_least, choose


class DistributionalAttention(nn.Module):
    """Time-frequency distributional attention (DAM) over video features.

    Section 3 and Figure 2 of Cui et al., *Learning from Heterogeneity: Generalizing Dynamic Facial
    Expression Recognition via Distributionally Robust Optimization*, ACM MM 2025, arXiv:2507.15765.
    The output is the input times one gate, which does not depend on the channel::

        y = x ⊙ (1 + r (G − 1)),   G[b,t,h,w] = ½ ( w_t (1 + g[b,t]) + w_s (1 + f[b,h,w]) )

    with g from `temporal_gate`, f from `frequency_gate` and w_t, w_s learned. It has x's shape,
    dtype, device and memory format; statistics and gates are computed in float32 or better, also
    under autocast.

    Deviations from the released code, and how to have its behaviour:

    - r is learned and starts at 0, so that a pretrained backbone is unchanged at step 0
      (``identity_start=False``: r = 1, not learned).
    - temporal consistency is taken along time (``consistency="bins"``: along the channel bins).
    - any clip length: statistics are resampled linearly along time to ``num_frames`` and the gate
      back; K need not equal T.
    - ``perturbation="adversarial"``: the noise really is adversarial. In training its parameters
      receive the reversed gradient, and the perturbation that acts, (ν·a, λ_w·b) over all
      frequencies, is projected onto the ball of radius 0.1·dct_size around zero; in eval it is off.

    Args:
        channels: C of the input.
        num_frames: T that the weights are made for; where the layout folds time, also the clip
            length, unless ``forward`` is told another.
        layout: where the input keeps its axes: a pattern, or a
            `Layout`, which knows of tokens beside the grid too
            (class token, registers), passed through untouched. The parameters do not depend on it.
        bins: K, number of channel bins; default ``num_frames``.
        dct_size: n, side of the local spectrum, odd, at least 3.
        reduction: r > 1 puts n²//r maps and a ReLU into the read-out of the frequency branch.
        consistency: ``"time"`` or ``"bins"``.
        perturbation: ``"learned"`` (trained with everything else), ``"adversarial"`` or ``None``.
        identity_start: start as the identity.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        HDFError: for an option out of range, and in ``forward`` for an input that does not fit.

    Example:
        >>> attention = DistributionalAttention(channels=24, num_frames=8)
        >>> x = torch.randn(2, 24, 8, 14, 14)
        >>> torch.equal(attention(x), x)
        True
        >>> attention.gate(x).shape
        torch.Size([2, 8, 14, 14])
    """

    @as_layout_keywords
    def __init__(
        self,
        channels: int,
        num_frames: int = 16,
        *,
        layout: str | Layout = "b c t h w",
        bins: int | None = None,
        dct_size: int = 7,
        reduction: int = 1,
        consistency: str = "time",
        perturbation: str | None = "learned",
        identity_start: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = at_least("channels", channels, 1)
        self.num_frames = at_least("num_frames", num_frames, 1)
        self.bins = self.num_frames if bins is None else at_least("bins", bins, 1)
        if at_least("dct_size", dct_size, 3) % 2 == 0:
            raise HDFError(
                "dct_size",
                "an odd integer",
                dct_size,
                "take the one above or below, whose spectrum has a centre",
            )
        if at_least("reduction", reduction, 1) > dct_size**2:
            raise HDFError("reduction", f"at most dct_size² = {dct_size**2}", reduction)
        choose("consistency", consistency, ("time", "bins"))
        choose("perturbation", perturbation, ("learned", "adversarial", None))
        self.reduction = reduction
        self.layout = as_layout(layout)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.options = AttentionOptions(self.bins, consistency, dct_size)
        self.temporal = TemporalBranch(self.num_frames, self.bins, consistency, **factory)
        self.frequency = FrequencyBranch(dct_size, reduction, perturbation, **factory)
        self.temporal_weight = nn.Parameter(torch.empty(1, **factory))
        self.frequency_weight = nn.Parameter(torch.empty(1, **factory))
        self.strength = nn.Parameter(torch.empty(1, **factory)) if identity_start else None
        self._reset_mixture()

    @classmethod
    def from_released(
        cls, state_dict: Mapping[str, Tensor], channels: int, *, layout: str | Layout = "t b c h w"
    ) -> DistributionalAttention:
        """Build the module from a checkpoint of the released DAM, with the released behaviour.

        Args:
            state_dict: the released parameters of one DAM; T, K, dct_size and reduction are read
                from their shapes, and their dtype is kept.
            channels: C of the input.
            layout: of the input; default the released one.

        Raises:
            HDFError: naming the keys that are missing, unknown or of the wrong shape.
        """
        from hdf_modules.attention.released import options_of, translate  # noqa: PLC0415 (rarely needed)

        module = cls(channels, layout=layout, **options_of(state_dict))
        module.load_state_dict(translate(state_dict, module.state_dict()))
        return module

    def reset_parameters(self) -> None:
        """Set every parameter to its initial value."""
        self.temporal.reset_parameters()
        self.frequency.reset_parameters()
        self._reset_mixture()

    def _reset_mixture(self) -> None:
        nn.init.constant_(self.temporal_weight, 0.8)
        nn.init.constant_(self.frequency_weight, 0.3)
        if self.strength is not None:
            nn.init.zeros_(self.strength)

    def forward(
        self, x: Tensor, num_frames: int | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Return x times its gate.

        Args:
            x: features in the module's layout, floating point.
            num_frames: clip length of this call, where the layout folds time.
            grid: (height, width) of this call, where the layout folds positions.

        Raises:
            HDFError: if x does not fit the layout, the channels or a whole number of clips.
        """
        if isinstance(x, torch.fx.Proxy):  # in a traced graph the module is one node
            options = {"num_frames": num_frames, "grid": grid}
            return x.tracer.create_proxy(
                "call_module", x.tracer.path_of_module(self), (x,), options
            )
        axes = self._axes(x, num_frames, grid)
        with operator.without_autocast(x):
            weights = self._weights(x)
            if weights is not None:
                return operator.attend(x, axes, weights, self.options)
            return functional.multiplied(x, axes, *self._parts(self._statistics(x, axes)))

    def gate(
        self, x: Tensor, *, num_frames: int | None = None, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """Return the factor of every frame and position, (batch, time, height, width)."""
        with operator.without_autocast(x):
            by_time, by_position = self._parts(self._statistics(x, self._axes(x, num_frames, grid)))
        return by_time[:, :, None, None] + by_position[:, None]

    def gates(
        self, x: Tensor, *, num_frames: int | None = None, grid: tuple[int, int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return g (batch, time) of every frame and f (batch, height, width) of every position."""
        with operator.without_autocast(x):
            return self._gates(self._statistics(x, self._axes(x, num_frames, grid)))

    def _weights(self, x: Tensor) -> AttentionWeights | None:
        """Return the weights in the dtype of the computation, or None where modules must run.

        That is where a linear map is not what it was made as: hooks, pruning, parametrizations,
        adapters, another module in its place.
        """
        t, f = self.temporal, self.frequency
        linear = (t.mixing, t.query, t.key, t.value)
        parts = (t, f, f.readout, *linear)
        kinds = (TemporalBranch, FrequencyBranch, Readout, *[nn.Linear] * 4)
        for part, kind in zip(parts, kinds, strict=True):
            hooks = part._forward_hooks or part._forward_pre_hooks or part._backward_hooks
            if type(part) is not kind or hooks or "forward" in part.__dict__:
                return None
        if t.mixing.bias is not None:
            return None
        adversarial = f.perturbation == "adversarial"
        # One by one, as the compiler of torch 2.11 cannot unpack a list of parameters.
        kernels = [f.readout[i] for i in range(len(f.readout))]
        found = [
            *(t.mean_weight, t.peak_weight, t.scale, t.distance_scale, t.mixing.weight),
            *(t.query.weight, t.query.bias, t.key.weight, t.key.bias, t.value.weight, t.value.bias),
            *(f.clean_weight, f.perturbed_weight),
            *(f.perturbing() if adversarial else (f.noise, f.noise_scale, f.spread_scale)),
            *(f.slope, f.scale, f.shift, *kernels, None)[:5],
            *(self.temporal_weight, self.frequency_weight, self.strength),
        ]
        dtype = self._dtype(x)
        cast: list[Any] = [w if w is None or w.dtype == dtype else w.to(dtype) for w in found]
        return AttentionWeights(*cast)

    def _statistics(self, x: Tensor, axes: BoundLayout) -> functional.ClipStatistics:
        return functional.clip_statistics(axes.clip_view(x), self.bins, self._dtype(x))

    def _gates(self, stats: functional.ClipStatistics) -> tuple[Tensor, Tensor]:
        temporal = in_dtype_of(stats.mean, self.temporal, stats.mean, stats.peak)
        return temporal, in_dtype_of(stats.total, self.frequency, stats.total)

    def _parts(self, stats: functional.ClipStatistics) -> tuple[Tensor, Tensor]:
        mixture = self.temporal_weight, self.frequency_weight, self.strength
        cast: list[Any] = [None if w is None else w.to(stats.mean.dtype) for w in mixture]
        return functional.gate_parts(*self._gates(stats), MixtureWeights(*cast))

    def _dtype(self, x: Tensor) -> torch.dtype:
        """Statistics and gates are computed in this dtype: float32 or better."""
        dtype = torch.promote_types(x.dtype, self.temporal_weight.dtype)
        return torch.promote_types(dtype, torch.float32)

    def _axes(self, x: Tensor, num_frames: int | None, grid: tuple[int, int] | None) -> BoundLayout:
        """Find the axes of x, or say why x does not fit."""
        dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_nested
        if not (dense and x.is_floating_point() and x.dtype.itemsize > 1):
            raise HDFError("x", "a dense floating-point tensor of 16 bits or more", kind_of(x))
        tracing = not torch.compiler.is_compiling() and torch._C._is_tracing()
        if tracing and torch.onnx.is_in_onnx_export():
            hint = "pass dynamo=True: the older exporter would fix all sizes"
            raise HDFError("dynamo", "torch.onnx.export(…, dynamo=True)", False, hint)
        time = self.num_frames if num_frames is None else at_least("num_frames", num_frames, 1)
        if grid is not None and not is_grid(grid):
            raise HDFError("grid", "(height, width), both >= 1", grid)
        if x.device != self.temporal_weight.device:
            raise HDFError(
                "x",
                f"on {self.temporal_weight.device}, where the parameters are",
                f"on {x.device}",
                "move the module with .to(x.device), or x",
            )
        axes = self.layout.bind(x, time, grid)
        sizes = axes.sizes
        if sizes.c != self.channels:
            raise HDFError(
                "x",
                f"{self.channels} channels",
                f"{sizes.c} in shape {tuple(x.shape)} read as {self.layout.pattern!r}",
                "say by layout= where the axes are, or by channels= how many there are",
            )
        if num_frames is not None and sizes.t != num_frames:
            expected = f"{sizes.t}, as in x of shape {tuple(x.shape)}"
            raise HDFError("num_frames", expected, num_frames)
        if grid is not None and (sizes.h, sizes.w) != tuple(grid):
            raise HDFError("grid", f"{(sizes.h, sizes.w)}, as in x {tuple(x.shape)}", grid)
        return axes

    def __prepare_scriptable__(self) -> Any:
        """Refuse ``torch.jit.script``, which calls this."""
        hint = "use torch.export.export, torch.compile or torch.jit.trace"
        raise HDFError("torch.jit.script", "a module that TorchScript can read", "this one", hint)

    def extra_repr(self) -> str:
        """Options as the constructor takes them."""
        options = {
            "num_frames": self.num_frames,
            "layout": self.layout,
            "bins": self.bins,
            "dct_size": self.frequency.dct_size,
            "reduction": self.reduction,
            "consistency": self.temporal.consistency,
            "perturbation": self.frequency.perturbation,
            "identity_start": self.strength is not None,
        }
        return f"{self.channels}, " + ", ".join(f"{k}={v!r}" for k, v in options.items())
