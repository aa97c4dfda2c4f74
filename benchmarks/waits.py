"""How often a host would wait for its device, counted on any device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

# Values that Python reads, and shapes that depend on values.
READ = ("_local_scalar_dense", "equal", "is_nonzero", "item")
SHAPED = (
    *("nonzero", "masked_select", "bincount", "repeat_interleave"),
    *("_unique", "_unique2", "unique_dim", "unique_consecutive", "unique_dim_consecutive"),
)
MASKED = ("index", "index_put", "index_put_", "_index_put_impl_")


class Waits(TorchDispatchMode):
    """Counts the operations inside for which a host waits, were the tensors on a device.

    Random states lie on the host whatever the device, as tensors of bytes: they do not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func.overloadpacket.__name__
        first = args[0] if args and isinstance(args[0], Tensor) else None
        on_host = first is not None and first.dtype == torch.uint8 and name in READ
        masks = [i for i in args[1] if i is not None] if name in MASKED else []
        masked = any(index.dtype in (torch.bool, torch.uint8) for index in masks)
        copied = name == "_to_copy" and str((kwargs or {}).get("device")) == "cpu"
        moved = copied and first is not None and first.device.type != "cpu"
        if (name in READ + SHAPED and not on_host) or masked or moved:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def counted(work: Callable[[], Any]) -> Counter[str]:
    """Names of what a host waits for, each with its number."""
    read = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        seen = len(waits.names)
        values = read(tensor)
        del waits.names[seen:]  # of a device's tensor, the copy that is read
        if tensor.dtype != torch.uint8:
            waits.names.append("tolist")
        return values

    waits = Waits()
    with patch.object(Tensor, "tolist", tolist), waits:  # a processor's are read by no operation
        work()
    return Counter(waits.names)
