"""Looking changes no bit, where what there is to see is formed by another path than the fast one.

The two paths round differently. So the explicit path is run twice, with the hooks and without; an entry that
the hooks left as it was keeps the value of the fast path, any other has that of the explicit path.
"""

from jaxtyping import Float
from torch import Tensor, autograd


def unless_edited(
    exact: Float[Tensor, "*dims"], seen: Float[Tensor, "*dims"], plain: Float[Tensor, "*dims"]
) -> Float[Tensor, "*dims"]:
    """`exact` where `seen`, with hooks, equals `plain`, without; else `seen`. The gradient is that of `seen`.

    (Their difference added to `exact` would do for small edits; but what an edit has erased would leave its
    rounding error behind.)
    """
    return _UnlessEdited.apply(exact, seen, plain)  # pyright: ignore[reportReturnType]


class _UnlessEdited(autograd.Function):
    @staticmethod
    def forward(ctx, exact, seen, plain):
        return exact.where(seen == plain, seen)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return None, grad, None
