"""An optimizer around another one, with nothing of its own but what it adds."""

from __future__ import annotations

import sys
from typing import Any

from torch.amp import GradScaler
from torch.optim import Optimizer

HOOKS = (
    "_optimizer_state_dict_pre_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


class OptimizerWrapper(Optimizer):
    """A real ``torch.optim.Optimizer`` whose parameter groups and state are the base optimizer's.

    Whatever reads or writes one sees the other: schedulers, scalers, clippers, checkpoints. What a
    subclass adds lives in the parameter groups, so that every way of saving an optimizer saves it.

    Args:
        base_optimizer: the optimizer that owns groups and state.
        defaults: options that each parameter group gets unless it brings its own.
        attributes: what the subclass stores on itself; it is pickled with the optimizer.
    """

    base_optimizer: Optimizer

    def __init__(
        self, base_optimizer: Optimizer, defaults: dict[str, Any], **attributes: Any
    ) -> None:
        # Optimizer.__init__ would replace the groups and the state that the base owns; __setstate__
        # is how torch itself sets up an optimizer around existing ones.
        defaults = {**base_optimizer.defaults, **defaults}
        self.__setstate__({"base_optimizer": base_optimizer, "defaults": defaults, **attributes})

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the attributes and link to the base optimizer, which pickles without its hooks."""
        super().__setstate__(state)
        # The base reads and writes the state, so it is the one that runs these hooks.
        for name in HOOKS:
            setattr(self, name, getattr(self.base_optimizer, name))
        self.complete_groups()

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes without hooks and without the wrapper a scheduler puts on step."""
        skipped = ("_optimizer_", "_zero_grad_", "_opt_called")
        return {k: v for k, v in vars(self).items() if k != "step" and not k.startswith(skipped)}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base_optimizer.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base_optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The base optimizer's state."""
        return self.base_optimizer.state

    @state.setter
    def state(self, state: Any) -> None:
        self.base_optimizer.state = state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer; it may bring its own options."""
        self.base_optimizer.add_param_group(param_group)
        self.complete_groups()

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state dict, whose groups carry this one's options too."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, or of the base optimizer alone."""
        self.base_optimizer.load_state_dict(state_dict)
        self.complete_groups()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of all parameters."""
        self.base_optimizer.zero_grad(set_to_none)

    def complete_groups(self) -> None:
        """Give each parameter group the options that it lacks."""
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)


def called_by_scaler() -> bool:
    """Tell whether an enabled GradScaler is stepping: it leaves no other trace in its optimizer."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code is GradScaler.step.__code__:
            return bool(frame.f_locals["self"].is_enabled())
        frame = frame.f_back  # type: ignore[assignment]
    return False
