"""Whether an exporter looks at the code, which wants all sizes, or a compiler."""

from __future__ import annotations

from typing import Any

import torch


def exporting() -> bool:
    """Tell it where `torch.compiler.is_compiling`.

    The public function is always true to the compilers of torch 2.11 and before, and torch 2.6 has
    none. The flag behind it is set where export runs the code, but not by every strict one, which
    traces it as compilers do.
    """
    from torch._dynamo.symbolic_convert import InstructionTranslator  # noqa: PLC0415 (heavy)

    try:
        tracer: Any = InstructionTranslator.current_tx()
    except AttributeError:  # nothing was traced yet
        tracer = None
    flag = getattr(torch.compiler, "_is_exporting_flag", tracer is None)
    return bool(flag or getattr(tracer, "export", False))


# What torch.compiler.assume_constant_result does, which imports the compiler: called, not traced.
exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]
