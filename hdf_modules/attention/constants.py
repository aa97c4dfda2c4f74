"""Small constant tensors, built once per size, dtype and device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

Built = TypeVar("Built")
_LIMIT = 256
_store: dict[Any, Any] = {}


def constant(build: Callable[..., Built], *sizes: int, like: Tensor) -> Built:
    """Return ``build(*sizes, dtype, device)`` in the dtype and on the device of ``like``.

    Kept between calls, except where tensors are traced or faked and nothing may outlive the call.
    """
    if torch.compiler.is_compiling() or type(like) not in (Tensor, torch.nn.Parameter):
        return build(*sizes, like.dtype, like.device)
    key = (build, sizes, like.dtype, like.device)
    if key not in _store:
        if len(_store) >= _LIMIT:
            _store.clear()
        with torch.inference_mode(False):  # an inference tensor could never be used in training
            _store[key] = build(*sizes, like.dtype, like.device)
    return _store[key]
