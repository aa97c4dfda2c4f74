"""What the second forward pass of a step has to leave alone, and what it has to repeat."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.utils._pytree import tree_leaves

# Whether any SAM's second pass is on: a loss that no one told of it freezes itself.
SECOND_PASS: ContextVar[bool] = ContextVar("second_pass", default=False)
UNTOLD = (
    "the loss is in the second pass of a SAM that does not know it: its memory stands still, "
    "its λ too; say SAM(…, criterion=loss) or sam.ascend(loss)"
)
POWER_ITERATION = (_SpectralNorm, SpectralNorm)  # a module, and the hook of one
MOST_PASSES = 1024  # whose random states are kept for a step that may never come


@runtime_checkable
class Criterion(Protocol):
    """What SAM asks of a loss; one that has a part of this is told that part, any other nothing.

    Example:
        >>> class Loss(torch.nn.CrossEntropyLoss):
        ...     def rescale(self, grad_norm):
        ...         print(f"{grad_norm:.2f}")
        >>> from hdf_modules import SAM
        >>> logits = torch.nn.Parameter(torch.zeros(1, 2))
        >>> sam, criterion = SAM(torch.optim.SGD([logits], lr=0.1)), Loss()
        >>> criterion(logits, torch.tensor([0])).backward()
        >>> with sam.ascend(criterion):
        ...     criterion(logits, torch.tensor([0])).backward()
        0.71
    """

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
def second_pass(
    model: nn.Module | None,
    criterion: object,
    told: Sequence[Any],
    replay: RandomReplay,
    params: Sequence[Tensor] = (),
) -> Iterator[None]:
    """Undo, on exit, what forward passes inside do beside their gradients.

    - Buffers of modules in training mode (running statistics, moving averages, counters) are put
      back from copies instead of switching momentum off: layers keep normalising by the batch,
      and nothing stays switched off after an exception. What a module keeps elsewhere is not seen,
      and a forward pass that reads a buffer it moves reads it as the first pass left it.
    - Spectral normalisation takes no further power iteration, so its weight is the same function.
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
        told: `parts_told` of it.
        replay: holds the random states of the first pass.
        params: weights whose values here a graph keeps beyond the pass (``create_graph=True``).
    """
    parts = criterion.modules() if isinstance(criterion, nn.Module) else ()
    saved = {part: _copies(part) for part in parts if part._buffers}
    iterating: list[nn.Module] = []

    def watch(*called: Any) -> None:
        for module in modules or called[:1]:
            if module.training and module._buffers and module not in saved:
                saved[module] = _copies(module)
            hooks = module._forward_pre_hooks.values()
            if module.training and any(isinstance(h, POWER_ITERATION) for h in (module, *hooks)):
                module.training = False
                iterating.append(module)

    modules = [] if model is None else list(model.modules())
    watch()
    handle = register_module_forward_pre_hook(watch) if model is None else None
    outside = SECOND_PASS.get()
    SECOND_PASS.set(True)
    torch.clear_autocast_cache()
    try:
        with ExitStack() as stack, replay.again(), _own_copies(params) if params else nullcontext():
            for part in told:
                if hasattr(part, "frozen"):
                    stack.enter_context(part.frozen())
            yield
    finally:
        SECOND_PASS.set(outside)
        torch.clear_autocast_cache()
        if handle is not None:
            handle.remove()
        for module in iterating:
            module.training = True
        with torch.no_grad():
            for module, copies in saved.items():
                for name, buffer, copy in copies:
                    buffer.data.copy_(copy)  # as data: a graph may hold one that nobody changed
                    module._buffers[name] = buffer
        for module in modules:
            if callable(reshard := getattr(module, "reshard", None)):
                reshard()


def _copies(module: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """Return the module's buffers, each with a copy."""
    return [
        (name, buffer, buffer.clone())
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]


def _own_copies(params: Sequence[Tensor]) -> saved_tensors_hooks:
    """Let graphs keep copies of these weights, which are about to change under them."""
    places = {p.untyped_storage().data_ptr() for p in params}

    def pack(tensor: Tensor) -> Tensor:
        moves = tensor.layout == torch.strided and tensor.untyped_storage().data_ptr() in places
        return tensor.detach().clone() if moves else tensor

    return saved_tensors_hooks(pack, lambda tensor: tensor)


@dataclass(eq=False)
class Pass:
    """A forward pass of the model: the random state it started from, and how to know it again.

    Attributes:
        graph: it ran with gradients.
        inputs: its tensors.
        reached: whether a backward pass came by; None where that cannot be seen.
    """

    random: dict[int | None, Tensor]
    graph: bool
    inputs: list[weakref.ref[Tensor]]
    reached: bool | None
    repeated: bool = False

    def saw(self, inputs: list[Tensor]) -> bool:
        """Tell whether these are the same tensors."""
        return len(inputs) == len(self.inputs) and all(
            ref() is tensor for ref, tensor in zip(self.inputs, inputs, strict=True)
        )

    def reach(self, _grad: Tensor) -> None:
        """Note that a backward pass came by."""
        self.reached = True


@dataclass(eq=False)
class RandomReplay:
    """Forward hooks that record the random state of each pass, and can play the states again.

    A forward pass inside `again` starts from the state of the recorded one that saw the same
    tensors, or else of the first that is left, on the CPU and on the CUDA devices that hold the
    model, so dropout draws the same masks; afterwards the random stream goes on as if the
    repetition had not happened. Passes that drew nothing, that ran in evaluation mode or that no
    backward pass came by are no part of a step and are left alone, as are repetitions in a
    backward pass (checkpointing), which brings the random state itself.

    Attributes:
        states: the recorded passes.
        owner: the optimizer; hooks that were copied with a model and have none do nothing.
    """

    states: list[Pass] = field(default_factory=list)
    repeating: bool = False
    sure: bool = True
    owner: Callable[[], Any] = lambda: None

    def __reduce__(self) -> Any:
        """Copy as a new one, without an owner."""
        return RandomReplay, ()

    def attach(self, model: nn.Module) -> list[Any]:
        """Register the hooks; returns their handles."""
        return [
            model.register_forward_pre_hook(self, with_kwargs=True),
            model.register_forward_hook(self.after),
        ]

    def __call__(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Record, or while repeating restore, the random state before a forward pass."""
        if not module.training or self.owner() is None:
            return
        compiling = torch.compiler.is_compiling()  # which cannot trace all of this
        if not compiling and torch._C._current_graph_task_id() != -1:
            return
        leaves = [] if compiling else tree_leaves((args, kwargs))
        inputs = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        graph = torch.is_grad_enabled()
        if self.repeating:
            left = [each for each in self.states if each.graph == graph and not each.repeated]
            left = [each for each in left if each.reached is not False]
            same = [each for each in left if each.saw(inputs)]
            for chosen in (same or left)[:1]:
                chosen.repeated, self.sure = True, self.sure and len(same) == 1
                _restore_random_state(chosen.random)
            return
        seen, reached = [weakref.ref(tensor) for tensor in inputs], None if compiling else False
        self.states += [Pass(_random_state(module), graph, seen, reached)]  # 2.6 traces no append
        del self.states[:-MOST_PASSES]

    def after(self, module: nn.Module, _args: Any, output: Any) -> None:
        """Forget a pass that drew nothing; let one with gradients note that they are taken."""
        if torch.compiler.is_compiling() or self.repeating or not self.states:
            return
        inside = torch._C._current_graph_task_id() != -1
        if inside or not module.training or self.owner() is None:
            return
        last = self.states[-1]
        if _same(last.random, _random_state(module)):
            self.states.pop()
            return
        outputs = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
        outputs = [tensor for tensor in outputs if tensor.requires_grad]
        last.reached = False if outputs else None
        for tensor in outputs:
            tensor.register_hook(last.reach)

    def cleared(self) -> None:
        """Forget the passes whose gradients are no more."""
        self.states = [each for each in self.states if not each.reached]

    @contextmanager
    def again(self) -> Iterator[None]:
        """Replay inside, and forget the recorded states afterwards."""
        devices = {i for each in self.states for i in each.random if i is not None}
        with torch.random.fork_rng(devices):
            self.repeating, self.sure = True, True
            try:
                yield
                passes = [each for each in self.states if each.graph and each.reached is not False]
                again = sum(each.repeated for each in passes)
                if not self.sure and 0 < again < len(passes):
                    warnings.warn(
                        f"{len(passes)} training passes of the model before ascend(), {again} in "
                        "it: dropout may draw other masks; run what is no part of the step in eval",
                        stacklevel=6,
                    )
            finally:
                self.repeating = False
                self.states.clear()


def _random_state(module: nn.Module) -> dict[int | None, Tensor]:
    devices = {p.device.index for p in module.parameters() if p.is_cuda}
    return {None: torch.get_rng_state()} | {d: torch.cuda.get_rng_state(d) for d in devices}


def _same(first: dict[int | None, Tensor], second: dict[int | None, Tensor]) -> bool:
    return all(torch.equal(state, second[place]) for place, state in first.items())


def _restore_random_state(state: dict[int | None, Tensor]) -> None:
    for device, value in state.items():
        if device is None:
            torch.set_rng_state(value)
        else:
            torch.cuda.set_rng_state(value, device)
