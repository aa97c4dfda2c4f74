"""The parameters and the state of all attached attention, apart from the backbone's."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.optim import Optimizer

from hdf_modules.backbones.hooks import CHILD, ties
from hdf_modules.errors import HDFError, keys_apart


def dam_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of all attached attention, for a learning rate of their own.

    Args:
        model: an attached model; it may be wrapped or compiled since.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> backbone = [p for name, p in model.named_parameters() if ".dam." not in name]
        >>> groups = [{"params": backbone}, {"params": dam_parameters(model), "lr": 1e-3}]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-4)
    """
    return [p for _, dam in attached(model) for p in dam.parameters()]


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


def check_optimizer(optimizer: Optimizer, model: nn.Module) -> None:
    """Make sure that an optimizer trains the attached attention.

    An optimizer built before ``attach`` does not know of it, and says nothing.

    Args:
        optimizer: any optimizer.
        model: an attached model.

    Raises:
        HDFError: if a trainable parameter of the attention is not in the optimizer.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from hdf_modules import Stage, attach
        >>> model = attach(nn.Sequential(nn.Conv3d(3, 8, 3)), 16, stages=[Stage("0", 8)])
        >>> check_optimizer(torch.optim.AdamW(model.parameters()), model)
    """
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    absent = [
        f"{name}.{key}"
        for name, dam in attached(model)
        for key, p in dam.named_parameters()
        if p.requires_grad and id(p) not in known
    ]
    if absent:
        raise HDFError(
            "optimizer",
            "one that holds the parameters of the attached attention",
            f"{len(absent)} of them missing, {absent[0]!r} first",
            "build the optimizer after attach",
        )


def summary(model: nn.Module) -> str:
    """Return a table of all attached attention: where, what it reads, how big, how strong, trained.

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
        stage  layout     channels  parameters  strength  trained
        0      b c t h w  8         4238        0.000     yes
        in all 4238 parameters of attention, 656 of the backbone
    """
    attached(model)  # refuses a model without any
    rows, added = [("stage", "layout", "channels", "parameters", "strength", "trained")], 0
    for tie in ties(model):
        own, strength = list(tie.dam.parameters()), getattr(tie.dam, "strength", None)
        count, trained = sum(p.numel() for p in own), {p.requires_grad for p in own}
        rows.append(
            (
                tie.stage.name,
                tie.stage.layout.pattern,
                str(tie.stage.channels),
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


def attached(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the name and the module of all attached attention.

    Raises:
        HDFError: if there is none.
    """
    found = [(f"{tie.name}.{CHILD}".removeprefix("."), tie.dam) for tie in ties(model)]
    if not found:
        raise HDFError("model", "a model with attached attention", "none", "call attach first")
    return found
