"""What the second forward pass of a step has to leave alone, and what it has to repeat."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@contextmanager
def frozen_statistics(model: nn.Module | None, criterion: Any = None) -> Iterator[None]:
    """Undo, on exit, what forward passes inside do to running statistics and to the criterion.

    Statistics are put back from copies instead of switching momentum off: layers keep normalising
    by the batch, all three buffers of batch and instance normalisation are covered, and nothing
    stays switched off after an exception. Every buffer of ``criterion`` (group weights, a feature
    memory) is put back too, because one step must not count its batch twice.

    Args:
        model: where to look. Without it, every module in training mode that runs inside is watched.
        criterion: the loss; ignored unless it is a module.
    """
    saved: list[tuple[nn.Module, str, Tensor, Tensor]] = []
    seen: set[nn.Module] = set()

    def save(module: nn.Module, names: tuple[str, ...]) -> None:
        if module in seen:
            return
        seen.add(module)
        for name in names:
            buffer = module._buffers.get(name)
            if buffer is not None:
                saved.append((module, name, buffer, buffer.clone()))

    def watch(module: nn.Module, _args: Any = None) -> None:
        # Evaluation mode only reads them, and writing them back would invalidate saved activations.
        if module.training:
            save(module, RUNNING_STATISTICS)

    if isinstance(criterion, nn.Module):
        for part in criterion.modules():
            save(part, tuple(part._buffers))
    handle = None
    if model is None:
        handle = register_module_forward_pre_hook(watch)
    else:
        for part in model.modules():
            watch(part)
    # Putting buffers back afterwards is not enough for a state that the forward pass itself reads.
    frozen = getattr(criterion, "frozen", nullcontext)
    try:
        with frozen():
            yield
    finally:
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for module, name, buffer, copy in saved:
                module._buffers[name] = buffer.copy_(copy)


@contextmanager
def no_stale_casts() -> Iterator[None]:
    """Make autocast cast the weights anew inside, and again afterwards.

    It keeps the half-precision copies of the weights until its outermost context ends. Where that
    context holds both passes, the second would see the unmoved weights.
    """
    torch.clear_autocast_cache()
    try:
        yield
    finally:
        torch.clear_autocast_cache()


def discard_gathered(model: nn.Module | None) -> None:
    """Drop what FSDP2 gathered of the weights; a forward pass without a backward leaves it behind.

    The next one would then not see that the weights were put back.
    """
    for part in () if model is None else model.modules():
        reshard = getattr(part, "reshard", None)
        if callable(reshard):
            reshard()


class RandomReplay:
    """Forward pre-hook that records the random state of each pass, and can play the states again.

    The k-th forward pass inside :meth:`again` starts from the state of the k-th recorded one, on
    the CPU and on the CUDA devices that hold the model, so dropout draws the same masks; afterwards
    the random stream goes on as if the repetition had not happened. Passes in evaluation mode or
    without gradient are not part of a step and are left alone.
    """

    def __init__(self) -> None:
        self.states: list[dict[int | None, Tensor]] = []
        self.position: int | None = None

    def __call__(self, module: nn.Module, _args: Any) -> None:
        """Record, or while replaying restore, the random state before a forward pass."""
        if not (module.training and torch.is_grad_enabled()):
            return
        if self.position is None:
            self.states += [_random_state(module)]  # torch 2.6 cannot trace append here
        elif self.position < len(self.states):
            _restore_random_state(self.states[self.position])
            self.position += 1

    @contextmanager
    def again(self) -> Iterator[None]:
        """Replay inside, and forget the recorded states afterwards."""
        devices = [index for index in (self.states[0] if self.states else {}) if index is not None]
        with torch.random.fork_rng(devices):
            self.position = 0
            try:
                yield
            finally:
                self.position = None
                self.forget()

    def forget(self, *_: Any) -> None:
        """Start a new step (also the base optimizer's step hook, hence the ignored arguments)."""
        self.states.clear()


def _random_state(module: nn.Module) -> dict[int | None, Tensor]:
    devices = {p.device.index for p in module.parameters() if p.is_cuda}
    return {None: torch.get_rng_state()} | {d: torch.cuda.get_rng_state(d) for d in devices}


def _restore_random_state(state: dict[int | None, Tensor]) -> None:
    for device, value in state.items():
        if device is None:
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, device)
