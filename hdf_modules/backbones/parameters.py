"""The parameters and the state of all attached attention, apart from the backbone's."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hdf_modules.attention.layout import Layout
from hdf_modules.backbones.hooks import CHILD, ties
from hdf_modules.errors import HDFError, keys_apart
from hdf_modules.files import whole


def dam_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all attached attention, for a learning rate of their own.

    Args:
        model: an attached model; it may be wrapped or compiled since.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> len(dam_parameters(model))
        23
    """
    return [p for _, dam in attached(model) for p in dam.parameters()]


def dam_parameter_groups(
    parameters: Iterable[Any], model: nn.Module, **options: Any
) -> list[dict[str, Any]]:
    """Return an optimizer's groups with the attached attention in one of its own, the last.

    Attention starts from nothing, behind pretrained layers. Code that sorts parameters by the
    names or kinds of layers leaves it out, as TSM's ``get_optim_policies`` does, or gives it
    the rate of the block that it sits in: layer decay makes that tiny.

    Args:
        parameters: what the optimizer would be given: parameters or groups of them. Attention's
            are taken out, wherever they are; the groups themselves are not changed.
        model: an attached model.
        **options: of attention's group: ``lr``, ``weight_decay``, …

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> groups = dam_parameter_groups(model.parameters(), model, lr=1e-3)
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-4)
        >>> [(len(group["params"]), group["lr"]) for group in optimizer.param_groups]
        [(2, 0.0001), (23, 0.001)]
    """
    given = list(parameters)
    groups = given if given and isinstance(given[0], Mapping) else [{"params": given}]
    own = dam_parameters(model)
    known = {id(p) for p in own}
    rest = []
    for group in groups:
        params = group["params"]
        params = [params] if isinstance(params, Tensor) else params
        rest.append({**group, "params": [p for p in params if id(p) not in known]})
    return [*(group for group in rest if group["params"]), {"params": own, **options}]


def dam_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the state of all attached attention alone, with the model's own keys.

    For libraries that save a model without what they do not know, such as transformers'
    ``save_pretrained``.

    Args:
        model: an attached model.

    Example:
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> next(iter(dam_state_dict(model)))
        '0.dam.temporal_weight'
    """
    state: dict[str, Tensor] = {}
    for name, dam in attached(model):
        state |= dam.state_dict(prefix=f"{name}.")
    return state


def load_dam_state_dict(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load what `dam_state_dict` returned.

    Args:
        model: a model attached in the same way.
        state: the state; it is not changed.

    Raises:
        HDFError: if keys are missing or unknown; nothing is loaded then.

    Example:
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> load_dam_state_dict(model, dam_state_dict(model))
    """
    own = dam_state_dict(model)
    apart = keys_apart(own, state)
    if apart:
        hint = "attach to the same stages with the same options as where it was saved"
        raise HDFError("state", "the keys of dam_state_dict(model)", apart, hint)
    for name, dam in attached(model):
        prefix = f"{name}."
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        dam.load_state_dict(part)


def save_dam(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the state of all attached attention to a safetensors file, whole or not at all.

    Args:
        model: an attached model.
        path: of the file.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_dam(model, f"{folder}/attention.safetensors")
    """
    from safetensors.torch import save  # noqa: PLC0415 - imports stay light; timm brings it

    state = {key: value.contiguous() for key, value in dam_state_dict(model).items()}
    places = {
        tie.name: f"{_described(tie.stage.layout)}: {tie.stage.channels}" for tie in ties(model)
    }
    with whole(Path(path)) as file:
        file.write(save(state, metadata=places))


def load_dam(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Load what `save_dam` wrote.

    Args:
        model: a model attached in the same way.
        path: of the file.

    Raises:
        HDFError: if keys are missing or unknown; nothing is loaded then.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_dam(model, f"{folder}/attention.safetensors")
        ...     load_dam(model, f"{folder}/attention.safetensors")
    """
    from safetensors.torch import load_file  # noqa: PLC0415

    load_dam_state_dict(model, load_file(path))


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Make sure that an optimizer trains the attached attention.

    An optimizer built before ``attach`` does not know of it, and says nothing; nor does anything
    say that code which freezes all but some names froze attention too.

    Args:
        optimizer: any optimizer.
        model: an attached model.

    Raises:
        HDFError: if a parameter of the attention is frozen or not in the optimizer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> check_optimizer(torch.optim.AdamW(model.parameters()), model)
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    named = [
        (f"{name}.{key}", p) for name, dam in attached(model) for key, p in dam.named_parameters()
    ]
    frozen = [name for name, p in named if not p.requires_grad]
    absent = [name for name, p in named if id(p) not in known]
    for names, what, hint in (
        (frozen, "frozen", "thaw them: p.requires_grad_() for p in dam_parameters(model)"),
        (absent, "missing", "build it after attach, of dam_parameter_groups(parameters, model)"),
    ):
        if names:
            raise HDFError(
                "optimizer",
                "one that trains the parameters of the attached attention",
                f"{len(names)} of them {what}, {names[0]!r} first",
                hint,
            )


def summary(model: nn.Module) -> str:
    """Return a table of all attached attention: where, what it reads, how big, how strong, trained.

    ``t×h×w`` is the size there of the sample that `attach` looked at, ``-`` where it had none.
    ``strength`` is r, 0 where attention changes nothing yet; ``-`` where it is not learned.

    Args:
        model: an attached model.

    Raises:
        HDFError: if no attention is attached.

    Example:
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> print(summary(model))
        stage  layout     channels  t×h×w  parameters  strength  trained
        0      b c t h w  8         -      4238        0.000     yes
        in all 4238 parameters of attention, 656 of the backbone
    """
    attached(model)  # refuses a model without any
    titles = ("stage", "layout", "channels", "t×h×w", "parameters", "strength", "trained")
    rows, added = [titles], 0
    for tie in ties(model):
        own, strength = list(tie.dam.parameters()), getattr(tie.dam, "strength", None)
        count, trained = sum(p.numel() for p in own), {p.requires_grad for p in own}
        rows.append(
            (
                tie.stage.name,
                _described(tie.stage.layout),
                str(tie.stage.channels),
                "×".join(map(str, tie.seen or "-")),
                str(count),
                "-" if strength is None else f"{float(strength.detach()):.3f}",
                {True: "yes", False: "no"}[trained.pop()] if len(trained) == 1 else "in part",
            )
        )
        added += count
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    rest = sum(p.numel() for p in model.parameters()) - added
    return "\n".join([*lines, f"in all {added} parameters of attention, {rest} of the backbone"])


def _described(layout: Layout) -> str:
    extra = {"prefix": layout.prefix_tokens, "suffix": layout.suffix_tokens}
    return layout.pattern + "".join(f", {count} {where}" for where, count in extra.items() if count)


def attached(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the name and the module of all attached attention.

    Raises:
        HDFError: if there is none.
    """
    found = [(f"{tie.name}.{CHILD}".removeprefix("."), tie.dam) for tie in ties(model)]
    if not found:
        raise HDFError("model", "a model with attached attention", "none", "call attach first")
    return found
