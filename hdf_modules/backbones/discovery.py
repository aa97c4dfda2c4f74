"""Find the stages of a model by experiment: what it does with a clip, not what it is called.

One forward shows which modules all of the computation passes through (``flow``), a second what
their outputs' axes are (``reading``). Of those that are places for attention the last of each
resolution is taken, and four evenly spaced ones where there is but one resolution.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hdf_modules.backbones.choice import (
    Candidate,
    choose,
    described,
    is_block,
    place_before,
)
from hdf_modules.backbones.flow import Flow, Passage
from hdf_modules.backbones.hooks import CHILD
from hdf_modules.backbones.nested import mapped, tensors_in
from hdf_modules.backbones.probe import (
    Observation,
    Stowaway,
    accepted,
    arguments,
    observe,
    sample,
    undisturbed,
    without_checkpointing,
)
from hdf_modules.backbones.reading import COPIES, Clip, changed, clip_of, read
from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError


class Discovery(NamedTuple):
    """What experiments showed of a model; as a string the table that `explain` prints.

    Args:
        stages: in the order of the computation; none where none was found.
        candidates: modules that everything passes through, with why they are taken or not.
        example: the sample that the model saw, ``None`` where it took none.
        seen: what the stages gave.
    """

    stages: list[Stage]
    candidates: list[Candidate]
    example: Any = None
    seen: Observation | None = None

    def __str__(self) -> str:
        if not self.candidates:
            return "give a sample that the model takes, example=…, to find its stages"
        return described(self.stages, self.candidates)


def explain(model: nn.Module, num_frames: int, example: Any = None) -> str:
    """Return a table of where experiments would put attention, and of why not elsewhere.

    Its last line is what a user could have written. The model is not changed.

    Args:
        model: the bare backbone, on any device but ``meta``.
        num_frames: T of a clip.
        example: a sample that the model takes, as for `attach`; by default the usual kinds of clips
            and images are tried.

    Raises:
        HDFError: if the model does not take the example, or the example holds no clip.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv3d(3, 8, 3), nn.MaxPool3d(2), nn.Conv3d(8, 12, 3))
        >>> print(explain(net, 16, torch.rand(1, 3, 16, 24, 24)))
           module  output              layout
        x  0       (1, 8, 14, 22, 22)  b c t h w  the last of its resolution
        x  1       (1, 8, 7, 11, 11)   b c t h w  the last of its resolution
        x  2       (1, 12, 5, 9, 9)    b c t h w  the last of its resolution
        stages=[Stage('0', 8, 'b c t h w'), Stage('1', 8, 'b c t h w'), Stage('2', 12, 'b c t h w')]
    """
    return str(explore(model, num_frames, example))


def explore(model: nn.Module, num_frames: int, example: Any = None) -> Discovery:
    """Find the stages on the example, or on the first usual clip that shows some; as `explain`."""
    if example is not None:
        return discover(model, num_frames, example)
    best = Discovery([], [])
    for guess in _guesses(num_frames):
        try:
            found = discover(model, num_frames, guess)
        except HDFError:  # the model takes another kind
            continue
        if found.stages:
            return found
        best = found if found.candidates else best
    return best


def _guesses(num_frames: int) -> Iterator[Tensor]:
    """Yield clips and images as models take them, the commonest first."""
    for side in (112, 224):
        yield sample(1, 3, num_frames, side, side)
        yield sample(1, num_frames, 3, side, side)
        yield sample(1, 3, side, side)


def discover(model: nn.Module, num_frames: int, example: Any) -> Discovery:
    """Find the stages of a model.

    The model sees the example three times in evaluation mode, the second time five versions of it
    in one batch; nothing of the model changes by it.

    Args:
        model: on any device but ``meta``.
        num_frames: T of a clip.
        example: as for `attach`.

    Raises:
        HDFError: if the model does not take the example, or the example holds no clip.
    """
    given = arguments(model, example)
    args, kwargs = _one_clip(given, _pictures(given, num_frames), num_frames)
    pictures = _pictures((args, kwargs), num_frames)
    if not pictures:
        shapes = [tuple(x.shape) for x in tensors_in((args, kwargs))]
        expected = "a clip or a frame in it, such as (1, 3, T, H, W), (1, T, 3, H, W), (1, 3, H, W)"
        hint = "give a batch as the model takes it"
        raise HDFError("example", expected, shapes or type(example).__name__, hint)
    candidates = _candidates(_flow(model, args, kwargs, pictures))
    looping = _read(model, args, kwargs, pictures, candidates)
    places = choose(model, candidates, looping)
    taken = [c for c in places if c.taken]
    if not taken:
        return Discovery([], candidates, example)
    last, clip = taken[-1], _clip(pictures)
    spare = place_before(last, places)
    watched = [c for c in places if c.taken or c is spare]
    seen = observe(model, example, [c.stage(clip) for c in watched])
    if len(watched) > 1 and seen.leaves_unread(last.stage(clip), num_frames):
        last.taken, last.why = False, "nothing behind it reads what attention changes there"
        if spare is not None:
            spare.taken, spare.why = True, "the last that is read"
    return Discovery([c.stage(clip) for c in candidates if c.taken], candidates, example, seen)


def _flow(model: nn.Module, args: Any, kwargs: Any, pictures: dict[int, Clip]) -> list[Passage]:
    """Watch the first forward."""
    leaves: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        if id(x) not in pictures:
            return x
        leaves.append(x.detach().clone().requires_grad_())
        return leaves[-1]

    args, kwargs = mapped(args, watched), mapped(kwargs, watched)
    flow = Flow()
    with undisturbed(model), torch.enable_grad(), flow.followed(model, leaves), accepted():
        return flow.finish(model(*args, **kwargs))


def _candidates(passages: list[Passage]) -> list[Candidate]:
    """Return the modules called once that everything passes through, with at least three axes."""
    calls = Counter(passage.name for passage in passages)
    return [
        Candidate(passage.name, passage.shape, i if passage.same is None else passage.same)
        for i, passage in enumerate(passages)
        if passage.needed and calls[passage.name] == 1 and len(passage.shape) >= 3
    ]


def _read(
    model: nn.Module,
    args: Any,
    kwargs: Any,
    pictures: dict[int, Clip],
    candidates: list[Candidate],
) -> set[str]:
    """Read the layouts in the second forward, of five versions; return the looping modules."""
    lengths = {len(x) for x in tensors_in((args, kwargs)) if id(x) in pictures}
    clip, before, looping = _clip(pictures), None, set[str]()

    def five(x: Tensor) -> Tensor:
        if id(x) in pictures:
            return changed(x, pictures[id(x)])
        return torch.cat([x] * COPIES) if x.ndim and len(x) in lengths else x

    def note(candidate: Candidate, module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal before
        candidate.reading = read(Stage(candidate.name, 1).read(output)[0], clip, before)
        before = candidate.reading or before

    args, kwargs = mapped(args, five), mapped(kwargs, five)
    with ExitStack() as stack:
        for candidate in candidates:
            module = model.get_submodule(candidate.name)
            stack.callback(module.register_forward_hook(partial(note, candidate)).remove)
            plain = type(module).forward is nn.Sequential.forward  # its last child takes attention
            if is_block(module) and not plain and not hasattr(module, CHILD):
                module.add_module(CHILD, Stowaway(candidate.name, looping))
                stack.callback(delattr, module, CHILD)
        for context in (undisturbed(model), without_checkpointing(), torch.no_grad(), accepted()):
            stack.enter_context(context)
        model(*args, **kwargs)
    return looping


def _pictures(arguments: Any, num_frames: int) -> dict[int, Clip]:
    """Find the clips among the arguments, by identity: those of the most dimensions."""
    clips = {
        id(x): (x.ndim, clip)
        for x in tensors_in(arguments)
        if x.is_floating_point() and (clip := clip_of(x, num_frames)) is not None
    }
    most = max((ndim for ndim, _ in clips.values()), default=0)
    return {key: clip for key, (ndim, clip) in clips.items() if ndim == most}


def _one_clip(value: Any, pictures: dict[int, Clip], num_frames: int) -> Any:
    """Return the first of several clips, or of images that do not make a clip."""
    lengths = {len(x): pictures[id(x)] for x in tensors_in(value) if id(x) in pictures}

    def first(x: Tensor) -> Tensor:
        clip = lengths.get(len(x)) if x.ndim else None
        if clip is None:
            return x
        whole = clip.time == 0 and len(x) % num_frames == 0
        return x[: num_frames if whole else 1]

    return mapped(value, first)


def _clip(pictures: dict[int, Clip]) -> Clip:
    """Return the clip of the most frames: of two pathways, the fast one's."""
    return max(pictures.values(), key=lambda clip: clip.frames)
