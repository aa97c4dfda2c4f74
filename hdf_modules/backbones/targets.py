"""Which module attention is tied to, given the name of a stage."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from torch import nn

from hdf_modules.backbones.stage import Stage
from hdf_modules.errors import HDFError

CHILD = "dam"  # the name of attention among the children of its module


def targets_of(model: nn.Module, stages: Sequence[Stage]) -> list[nn.Module]:
    """Return the module of each stage that attention is to follow."""
    targets = [target_of(model, stage) for stage in stages]
    if len({id(target) for target in targets}) < len(targets):
        names = [stage.name for stage in stages]
        raise HDFError(
            "stages", "each module once", names, "a Sequential ends with its last module"
        )
    return targets


def target_of(model: nn.Module, stage: Stage) -> nn.Module:
    """Return the last module of the stage that is not an ``nn.Sequential``.

    Code that runs the blocks of an ``nn.Sequential`` itself, as gradient checkpointing does,
    never calls the container, so a hook there would be skipped.
    """
    module = _named_module(model, stage.name)
    while (
        isinstance(module, nn.Sequential)
        and type(module).forward is nn.Sequential.forward
        and len(module) > 0
    ):
        module = module[-1]
    if isinstance(module, (nn.ModuleDict, nn.ModuleList, nn.Sequential)):
        refuse_looping(stage.name, module)
    if hasattr(module, CHILD):
        raise HDFError("stages", f"modules without an attribute {CHILD!r}", repr(stage.name))
    return module


def refuse_looping(name: str, module: nn.Module) -> None:
    """Refuse a module whose forward would run attention as one of its own children."""
    raise HDFError(
        "stages",
        "modules that do not loop over their children",
        f"{name!r}, a {type(module).__name__}",
        "attention would become one of the children: name the module before or after it, or the "
        "last of its children",
    )


def _named_module(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        close = difflib.get_close_matches(name, modules, n=3)
        raise HDFError(
            "stages",
            "names from model.named_modules()",
            repr(name),
            f"close to it: {', '.join(close)}" if close else "",
        )
    return modules[name]
