"""Logits and penultimate features from one forward."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules.backbones.probe import undisturbed
from hdf_modules.errors import HDFError, nearest

_INPUT = "_hdf_classifier_input"


def with_features(model: nn.Module, *, classifier: str | None = None) -> nn.Module:
    """Return a module whose forward gives ``(logits, features)``.

    Features are what the classifier reads: the input of timm's ``get_classifier()``, else of the
    linear layer that runs last. A classifier applied at several positions gives the features'
    average over them, so that features are always (rows of the batch, channels).

    A model of images stays one: with clips folded into the batch both are per frame. For one
    prediction per clip average what belongs together, as temporal averaging networks do::

        logits, features = (y.unflatten(0, (-1, num_frames)).mean(1) for y in model(frames))

    The returned module shares the model's parameters, and its state_dict keys are the model's own.
    Call `attach` before, and wrap (DDP) or compile after.

    Args:
        model: a classifier whose forward gives logits.
        classifier: name of the classification layer, where neither rule finds it.

    Raises:
        HDFError: if there is no such layer; for a model that is compiled before its first
            forward, because the layer that runs last is found there.

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
    return WithFeatures(model, classifier)


class WithFeatures(nn.Module):
    """The module that `with_features` returns."""

    def __init__(self, model: nn.Module, classifier: str | None = None) -> None:
        super().__init__()
        self.model = model
        self.classifier = classifier or _declared_classifier(model)
        if self.classifier is not None:
            self._tap(self.classifier)
        self.register_state_dict_post_hook(_drop_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Any, Tensor]:
        """Return what the model returns, and what its classifier read."""
        if self.classifier is None:
            self.classifier = self._last_linear(args, kwargs)
            self._tap(self.classifier)
        logits = self.model(*args, **kwargs)
        return logits, self._features(self.model.get_submodule(self.classifier))

    def _tap(self, name: str) -> None:
        modules = dict(self.model.named_modules())
        if name not in modules:
            expected = "a name from model.named_modules()"
            raise HDFError("classifier", expected, repr(name), nearest(name, modules))
        setattr(modules[name], _INPUT, None)
        modules[name].register_forward_pre_hook(_keep_input)

    def _features(self, layer: nn.Module) -> Tensor:
        """Take the input kept by the classifier and average it over positions."""
        x = getattr(layer, _INPUT)
        if x is None:
            raise HDFError("classifier", "a layer that the forward calls", repr(self.classifier))
        setattr(layer, _INPUT, None)  # so that no graph outlives its step
        if isinstance(layer, nn.Linear):
            return x if x.ndim == 2 else x.flatten(1, -2).mean(1)
        return x if x.ndim == 2 else x.flatten(2).mean(2)

    def _last_linear(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Find the linear layer that runs last, by running the model once."""
        if torch.compiler.is_compiling():
            raise HDFError(
                "model", "one forward before compiling", "none", "or name the classifier"
            )
        called: list[str] = []
        linear = [(n, m) for n, m in self.model.named_modules() if isinstance(m, nn.Linear)]
        handles = [m.register_forward_pre_hook(partial(_note, called, n)) for n, m in linear]
        try:
            with undisturbed(self.model), torch.no_grad():
                self.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        if not called:
            raise HDFError("model", "a model with a linear classification layer", "none is called")
        return called[-1]


def _declared_classifier(model: nn.Module) -> str | None:
    """Return the name of the layer that timm's ``get_classifier()`` returns, if there is one."""
    if not hasattr(model, "get_classifier"):
        return None
    layer: Any = model.get_classifier()  # type: ignore[operator]
    layer = layer[0] if isinstance(layer, (tuple, list)) else layer  # distilled: class token first
    if isinstance(layer, nn.Identity):
        raise HDFError("model", "a model with a classifier", "num_classes=0")
    return next((name for name, module in model.named_modules() if module is layer), None)


def _keep_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    setattr(module, _INPUT, args[0])


def _note(called: list[str], name: str, module: nn.Module, args: Any) -> None:
    called.append(name)


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
