"""Looking changes no bit, where what there is to see is formed by another path than the fast one.

The two paths round differently. So the explicit path is run with the hooks and, if they edit, without; an
entry that the hooks left as it was keeps the value of the fast path, any other has that of the explicit path.
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, autograd

from .state_edit import _same_view


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


class Watched:
    """An edit, and whether it edited: whether it wrote into what it was handed, or returned anything else."""

    def __init__(self, edit: Callable[[Tensor], object]):
        self.edit, self.edited = edit, False

    def __call__(self, handed: Tensor) -> object:
        version = None if handed.is_inference() else handed._version
        needs_gradient = handed.requires_grad
        returned = self.edit(handed)
        back = handed if returned is None else returned
        self.edited = not (
            version is not None
            and isinstance(back, Tensor)
            and handed._version == version
            and back.requires_grad == needs_gradient
            and _same_view(back, handed)
        )
        return returned


def change_by(hook: Callable[[Tensor], Tensor], compute: Callable[[], Tensor]) -> Tensor | None:
    """What a hook on something that is computed for it alone adds to it: None if it only looks.

    With a graph a difference all the same, of exactly 0 where it only looks, for the gradient at the hook.
    """
    unedited = compute()
    if unedited.requires_grad or unedited.is_inference():
        return hook(unedited.clone()) - unedited
    watched = Watched(hook)
    edited = watched(unedited)
    assert isinstance(edited, Tensor)
    return edited - compute() if watched.edited else None
