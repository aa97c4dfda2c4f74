"""What must hold for a backbone that attention is attached to: one function for all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hdf_modules import Stage, attach, detach
from hdf_modules.backbones.hooks import ties


def verify(
    model: nn.Module,
    num_frames: int,
    sample: Any,
    device: torch.device | str,
    **options: Any,
) -> list[Stage]:
    """Attach, check everything, detach, and return the stages.

    At first no output changes by a bit; every attention is called once; with r moved off 0 the
    output changes and every parameter of every attention gets a gradient; detached, the model has
    its own keys and outputs again.

    Args:
        model: an untrained backbone; see :func:`settle` for what happens to its weights.
        num_frames: T.
        sample: clips as the model takes them: a tensor or a dictionary of keyword arguments.
        device: where all of it happens; model and sample are moved there.
        options: of ``attach``.
    """
    model, sample = model.to(device), moved(sample, device)
    settle(model, sample)
    keys, before = list(model.state_dict()), outputs(model, sample)
    attach(model, num_frames, **options)
    dams = {tie.name: tie.dam for tie in ties(model)}
    stages = [tie.stage for tie in ties(model)]
    calls: Counter[str] = Counter()
    counters = [dam.register_forward_hook(partial(_count, calls, n)) for n, dam in dams.items()]
    assert same(outputs(model, sample), before), "attaching changed an output"
    for counter in counters:
        counter.remove()
    assert calls == dict.fromkeys(dams, 1), f"calls of attention: {calls}"
    check_gradients(model, dams, sample)
    assert list(detach(model).state_dict()) == keys
    assert same(outputs(model, sample), before), "detaching left something behind"
    return stages


def check_gradients(model: nn.Module, dams: dict[str, nn.Module], sample: Any) -> None:
    """Move r off 0: outputs change, and every parameter of the attention gets a gradient."""
    # Untrained layers would let a change of one layer's statistics grow from layer to layer.
    for norm in batch_norms(model):
        norm.train()
    before = outputs(model, sample)
    for dam in dams.values():
        nn.init.constant_(dam.strength, 0.1)
    gated = list(tensors(run(model, sample)))
    assert all(x.isfinite().all() for x in gated)
    assert not same(gated, before), "attention has no effect"
    # Weights of no pattern: a plain sum has no gradient behind a normalisation.
    sum((x * torch.randn_like(x)).sum() for x in gated if x.requires_grad).backward()
    for name, dam in dams.items():
        for key, parameter in dam.named_parameters():
            gradient = parameter.grad
            assert gradient is not None, f"no gradient: {name}.{key}"
            assert gradient.isfinite().all(), f"gradient not finite: {name}.{key}"
            # The softmax does not see a bias of the keys: its gradient is 0 but for rounding.
            assert gradient.any() or key.endswith("key.bias"), f"gradient of zero: {name}.{key}"
    model.eval()


def settle(model: nn.Module, sample: Any) -> None:
    """Make an untrained model behave like a trained one, in evaluation mode.

    Statistics of batches are those of the sample, or else numbers explode from layer to layer and
    gates saturate; weights that start at (or next to) 0, such as heads and layer scales, leave it,
    because nothing in front of them has an effect or gets a gradient.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() and parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
        for norm in batch_norms(model):
            norm.momentum = 1.0
        run(model.train(), sample)
        for norm in batch_norms(model):
            norm.momentum = 0.0  # the statistics stay
    model.eval()


def batch_norms(model: nn.Module) -> list[Any]:
    """Return the batch normalisations of a model."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def moved(sample: Any, device: torch.device | str) -> Any:
    """Return a sample on another device."""
    if isinstance(sample, Mapping):
        return {name: value.to(device) for name, value in sample.items()}
    if isinstance(sample, list):
        return [value.to(device) for value in sample]
    return sample.to(device)


def run(model: nn.Module, sample: Any) -> Any:
    """Call the model with a sample."""
    if isinstance(sample, Mapping):
        return model(**sample)
    return model(list(sample) if isinstance(sample, list) else sample)  # SlowFast writes into it


def outputs(model: nn.Module, sample: Any) -> list[Tensor]:
    """Return all tensors that the model gives."""
    with torch.no_grad():
        return list(tensors(run(model, sample)))


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    """Whether two lists of tensors are equal bit for bit."""
    return len(first) == len(second) and all(map(torch.equal, first, second))


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the floating-point tensors inside tuples, lists and dictionaries."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from tensors(item)


def _count(calls: Counter[str], name: str, *_: Any) -> None:
    calls[name] += 1
