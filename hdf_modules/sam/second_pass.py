"""What the second forward pass of a step has to leave alone, and what it has to repeat."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook

RUNNING_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Whether any SAM's second pass is on: a loss that no one told of it freezes itself.
SECOND_PASS: ContextVar[bool] = ContextVar("second_pass", default=False)
UNTOLD = (
    "the loss is in the second pass of a SAM that does not know it: its memory stands still, "
    "its λ too; say SAM(…, criterion=loss) or sam.ascend(loss)"
)


@runtime_checkable
class Criterion(Protocol):
    """What SAM asks of a loss; one that has a part of this is told that part, any other nothing."""

    def rescale(self, grad_norm: float) -> None:
        """Take g, the norm of the first pass's gradient, before the second pass."""

    def frozen(self) -> AbstractContextManager[None]:
        """Return a context in which a batch comes a second time and must not count twice."""

    @property
    def terms(self) -> Mapping[str, Any]:
        """What the last call was made of; its ``"sharpness_gap"`` goes before SAM's own."""


def parts_told(criterion: object) -> list[Any]:
    """Return the criterion if it has a part of `Criterion`, else the modules in it that have."""
    parts = criterion.modules() if isinstance(criterion, nn.Module) else [criterion]
    found = [part for part in parts if hasattr(part, "rescale") or hasattr(part, "frozen")]
    return found[:1] if criterion in found else found


@contextmanager
def second_pass(model: nn.Module | None, criterion: object, replay: RandomReplay) -> Iterator[None]:
    """Undo, on exit, what forward passes inside do beside their gradients.

    - Running statistics are put back from copies instead of switching momentum off: layers keep
      normalising by the batch, all three buffers of batch and instance normalisation are covered,
      and nothing stays switched off after an exception.
    - Every buffer of a criterion that is a module (group weights, a feature memory) is put back,
      because one step must not count its batch twice. One that reads such a state in its forward
      pass offers ``frozen()``, which holds meanwhile.
    - Random numbers are those of the first pass, and then go on as if there had been no second.
    - Autocast casts the weights anew, inside and afterwards. It keeps its half-precision copies
      until its outermost context ends; where that holds both passes, they would not move.
    - What FSDP2 gathered of the weights is dropped: a forward pass without a backward leaves it
      behind, and the next one would then not see that the weights were put back.

    Args:
        model: where to look. Without it, every module in training mode that runs inside is watched.
        criterion: the loss, or None.
        replay: holds the random states of the first pass.
    """
    parts = criterion.modules() if isinstance(criterion, nn.Module) else ()
    saved = {part: _copies(part, part._buffers) for part in parts if part._buffers}

    def watch(module: nn.Module, _args: Any = None) -> None:
        # Evaluation mode only reads them, and writing them back would invalidate saved activations.
        if module.training and module._buffers and module not in saved:
            saved[module] = _copies(module, RUNNING_STATISTICS)

    modules = [] if model is None else list(model.modules())
    for module in modules:
        watch(module)
    handle = register_module_forward_pre_hook(watch) if model is None else None
    outside = SECOND_PASS.get()
    SECOND_PASS.set(True)
    torch.clear_autocast_cache()
    try:
        with ExitStack() as stack, replay.again():
            for part in parts_told(criterion):
                if hasattr(part, "frozen"):
                    stack.enter_context(part.frozen())
            yield
    finally:
        SECOND_PASS.set(outside)
        torch.clear_autocast_cache()
        if handle is not None:
            handle.remove()
        with torch.no_grad():
            for module, copies in saved.items():
                for name, buffer, copy in copies:
                    module._buffers[name] = buffer.copy_(copy)
        for module in modules:
            if callable(reshard := getattr(module, "reshard", None)):
                reshard()


def _copies(module: nn.Module, names: Iterable[str]) -> list[tuple[str, Tensor, Tensor]]:
    """Return the module's buffers of these names, each with a copy."""
    return [
        (name, buffer, buffer.clone())
        for name in names
        if (buffer := module._buffers.get(name)) is not None
    ]


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
        devices = [] if not self.states else [i for i in self.states[0] if i is not None]
        with torch.random.fork_rng(devices):
            self.position = 0
            try:
                yield
            finally:
                self.position = None
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
