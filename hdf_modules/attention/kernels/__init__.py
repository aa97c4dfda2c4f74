"""What computes the attention faster than its definition does, with the same numbers.

Each module here has two functions: ``forward(x, call, *, keep)`` returns y and what ``backward``
needs besides x and the call; ``backward(grad, x, kept, call, *, input_needed)`` returns the
gradients of x and of the weights, these in the order of ``call.flat``.
"""

from typing import NamedTuple

from hdf_modules.attention.layout import BoundLayout
from hdf_modules.attention.weights import AttentionOptions, Flat


class Call(NamedTuple):
    """All that attending to an input takes besides the input.

    Attributes:
        axes: where the input keeps its axes.
        flat: the weights in the dtype of the computation.
        options: what the weights' shapes do not say.
    """

    axes: BoundLayout
    flat: Flat
    options: AttentionOptions
