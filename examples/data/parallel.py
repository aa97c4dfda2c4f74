"""Drawing and decoding on several processes; the results do not depend on their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Result = TypeVar("Result")


def parallel_map(
    function: Callable[[int], Result], items: Sequence[int], workers: int = 1
) -> list[Result]:
    """``[function(item) for item in items]``, on ``workers`` processes where there are several."""
    if workers <= 1 or len(items) < 2:
        return [function(item) for item in items]
    # spawn: forking a process in which torch already runs threads can hang
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(pool.map(function, items, chunksize=min(25, -(-len(items) // workers))))
