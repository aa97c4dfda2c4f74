"""Logits and penultimate features from one forward."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.backbones.classifier import (
    Rows,
    count_rows,
    declared_classifier,
    find_classifier,
    find_rows,
    logits_in,
)
from hdf_modules.backbones.nested import tensors_in
from hdf_modules.errors import HDFError, nearest


def with_features(
    model: nn.Module, features: str | None = None, *, classifier: str | None = None
) -> nn.Module:
    """Return a module whose forward gives ``(logits, features)``.

    Features are what the classifier reads, always (rows of the logits, channels): the average over
    the positions that belong to a row, where there are several. The classifier is timm's
    ``get_classifier()``, else the layer with weights that everything passes last. It is looked for
    in the first forward, which runs the model once more for that, and it is made sure there that
    each row of the logits depends on its own features and on no other row's.

    A model of images stays one: with clips folded into the batch both are per frame. For one
    prediction per clip average what belongs together, as temporal averaging networks do::

        logits, features = (y.unflatten(0, (-1, num_frames)).mean(1) for y in model(frames))

    The returned module shares the model's parameters, and its state_dict keys are the model's own.
    Call `attach` before, and wrap (DDP) or compile after.

    Args:
        model: a classifier whose forward gives logits.
        features: name of the module whose output is to be the features, such as ``"fc_norm"``.
        classifier: name of the module whose input is, where it is not found.

    Raises:
        HDFError: if there is no such module, or rows of features are not rows of the logits; for
            a model that is compiled before its first forward.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = with_features(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 7)))
        >>> logits, features = net(torch.rand(5, 6))
        >>> logits.shape, features.shape
        (torch.Size([5, 7]), torch.Size([5, 4]))
        >>> list(net.state_dict())
        ['0.weight', '0.bias', '2.weight', '2.bias']
    """
    return WithFeatures(model, features, classifier)


class WithFeatures(nn.Module):
    """The module that `with_features` returns."""

    def __init__(
        self, model: nn.Module, features: str | None = None, classifier: str | None = None
    ) -> None:
        super().__init__()
        if features is not None and classifier is not None:
            raise HDFError("features, classifier", "one of them", "both", "leave one out")
        modules = dict(model.named_modules())
        for argument, name in (("features", features), ("classifier", classifier)):
            if name is not None and name not in modules:
                expected = "a name from model.named_modules()"
                raise HDFError(argument, expected, repr(name), nearest(name, modules))
        if features is None and classifier is None:
            declared_classifier(model)  # refuses a model without one
        self.model = model
        self.gives, self.named = features is not None, features or classifier
        self.place: str | None = None
        self.rows: Rows | None = None
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Return what the model returns, and what its classifier read."""
        layer = self._tapped() or self._settle(args, kwargs)
        outer, _CALL.seen = getattr(_CALL, "seen", None), {}
        try:
            result = self.model(*args, **kwargs)
            x = _CALL.seen.get(id(layer))
        finally:
            _CALL.seen = outer
        if x is None:
            raise HDFError("model", "one that calls what gives its features", f"{self.place!r} not")
        logits = logits_in(result)
        count = count_rows(logits, x.shape)
        if self.rows is None and count > 1:
            self._settle(args, kwargs)
        return result, self._averaged(x, layer, count, single=logits.ndim < 2)

    def _tapped(self) -> nn.Module | None:
        """Return the module that is listened to, unless it has been replaced."""
        if self.place is None:
            return None
        try:
            layer = self.model.get_submodule(self.place)
        except AttributeError:
            return None
        return layer if _hooks(layer, self.gives)[1] else None

    def _settle(self, args: Any, kwargs: Any) -> nn.Module:
        """Find the module and the rows by running the model once more, and listen to it."""
        if torch.compiler.is_compiling():
            hint = "call the model once before torch.compile(model)"
            raise HDFError(
                "model", "one forward of two rows or more before compiling", "none", hint
            )
        if self.named is None:
            self.place, self.rows = find_classifier(self.model, args, kwargs)
        else:
            self.place, self.rows = (
                self.named,
                find_rows(self.model, self.named, gives=self.gives, args=args, kwargs=kwargs),
            )
        layer = self.model.get_submodule(self.place)
        register, tapped = _hooks(layer, self.gives)
        if not tapped:
            register(_keep_output if self.gives else _keep_input, with_kwargs=True)
        return layer

    def _averaged(self, x: Tensor, layer: nn.Module, count: int, *, single: bool) -> Tensor:
        """Average over the positions of each row."""
        if x.ndim == 1 or (x.ndim == 2 and len(x) == count and not (single and count == 1)):
            return x
        channels = _channels_axis(x, layer, gives=self.gives)
        if channels is None:
            place, argument = repr(self.place), "features" if self.gives else "classifier"
            expected = "a module whose channels are known: linear, convolution, normalisation, "
            raise HDFError(argument, f"{expected}pooling, or (rows, channels)", place)
        axis = 0 if self.rows is None else self.rows.axis
        rows = Rows(axis - (channels < axis), self.rows is None or self.rows.outer)
        x = rows.split(x.movedim(channels, -1), count).flatten(1, -2).mean(1)
        return x[0] if single and count == 1 else x


_CALL = threading.local()  # ``seen``: what modules read in the call of this thread, by identity


def _keep_input(module: nn.Module, args: Any, kwargs: Any) -> None:
    seen = getattr(_CALL, "seen", None)
    if seen is not None:
        seen[id(module)] = next(tensors_in((args, kwargs)))


def _keep_output(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
    seen = getattr(_CALL, "seen", None)
    if seen is not None:
        seen[id(module)] = next(tensors_in(output))


def _hooks(layer: nn.Module, gives: bool) -> tuple[Callable[..., Any], bool]:
    """Return what registers a hook, and whether ours is there; copies of a module keep it."""
    if gives:
        return layer.register_forward_hook, _keep_output in layer._forward_hooks.values()
    return layer.register_forward_pre_hook, _keep_input in layer._forward_pre_hooks.values()


_PASSING = (nn.Dropout, nn.Identity, nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh)
_LAST = (nn.Linear, nn.LayerNorm, nn.RNNBase, nn.MultiheadAttention)
_SECOND = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._MaxPoolNd,
)


def _channels_axis(x: Tensor, layer: nn.Module, *, gives: bool) -> int | None:
    """Return where the channels are in what a module reads or gives, if that is sure."""
    while isinstance(layer, nn.Sequential) and len(layer):
        parts = [part for part in layer if not isinstance(part, _PASSING)] or [nn.Identity()]
        layer = parts[-1 if gives else 0]
    if isinstance(layer, _SECOND):
        return 1
    if x.ndim == 2 or isinstance(layer, _LAST):
        return x.ndim - 1
    long = [axis for axis in range(1, x.ndim) if x.shape[axis] > 1]
    return long[0] if len(long) == 1 else None


def _drop_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    _rename(state, f"{prefix}model.", prefix)
    if hasattr(state, "_metadata"):  # versions of modules, by name
        _rename(state._metadata, f"{prefix}model.", prefix)


def _add_prefix(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    _rename(state, prefix, f"{prefix}model.")


def _rename(state: dict[str, Any], old: str, new: str) -> None:
    """Exchange the beginning of keys; in two passes, as new keys may equal old ones."""
    moved = {key: state.pop(key) for key in list(state) if key.startswith(old)}
    state.update({new + key.removeprefix(old): value for key, value in moved.items()})
