"""Inputs, edits and comparisons for the operators whose memory is a matrix.

Chunks are cut to 4 positions, so that documents take several, the last not full. Everything is
interpreted, one program after the other: documents, batches and heads are few.
"""

import torch

from hooked_ssm.ops import At, StateEdit

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NO_EDITS = {"edit_decay": None, "edit_write": None, "edit_state": None, "chunk": None}
theta = torch.tensor(0.7, dtype=torch.float64, device=DEVICE, requires_grad=True)


def sample(pos, *, batch=1, groups=1, heads=1, d_key=2, d_value=3, beta=False, decay=True, initial=True):
    """q, k of length 1, v, (beta in 0..2,) log_decay or None, initial or None, in float64."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    q, k, v = (normal(batch, pos, n, d) for n, d in ((groups, d_key), (groups, d_key), (heads, d_value)))
    k = k / k.norm(dim=-1, keepdim=True)
    inputs = [q, k, v, *([2 * torch.sigmoid(normal(batch, pos, heads))] if beta else [])]
    inputs.append(-torch.exp(normal(batch, pos, heads)) if decay else None)
    inputs.append(normal(batch, heads, d_key, d_value) if initial else None)
    return [None if x is None else x.to(DEVICE) for x in inputs]


def results(operator, inputs, cubic=1.0, **edits):
    """o, the last state, and the gradients of a loss: of the inputs, of theta, of what edits returned."""
    inputs = [None if x is None else x.detach().clone().requires_grad_() for x in inputs]
    returned = []

    def keeping(edit):
        def keep(x):
            got = edit(x)
            tensor = x if got is None else got.states if isinstance(got, StateEdit) else got
            returned.extend([tensor] if tensor.requires_grad else [])
            return got

        return keep

    kept = {
        name: At(edit.positions, keeping(edit.edit)) if isinstance(edit, At) else keeping(edit)
        for name, edit in edits.items()
        if callable(edit)
    }
    outs = operator(*inputs, **{**NO_EDITS, **edits, **kept})
    g = torch.Generator().manual_seed(1)
    loss = sum(
        (out * torch.randn(out.shape, generator=g, dtype=torch.float64).bfloat16().to(out)).sum()
        for out in outs
    )
    wrt = [x for x in [*inputs, theta, *returned] if x is not None]
    return [*outs, *torch.autograd.grad(loss + cubic * outs[0].pow(3).sum(), wrt, materialize_grads=True)]


def assert_close(got, wanted, tolerance):
    """Each to within the tolerance times its largest entry."""
    assert len(got) == len(wanted)
    for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert one.shape == other.shape and one.isfinite().all(), i
        error = (one.double() - other.double()).abs().max()
        assert error <= tolerance * max(1.0, other.abs().max()), f"tensor {i}: off by {error}"


# Edits of a trajectory [batch, pos, head, ...] with 6 positions.


def look(x):
    return x


def some_entries(x):
    x = x.clone()
    x[:, 1, 0, 0], x[:, -1] = 0.3, -1.0
    return x


def in_place(x):
    x[:, 2] = 0.3


def from_elsewhere(x):
    """Set to functions of the raw trajectory at other positions, before and after, and of a parameter."""
    new = x.clone()
    new[:, 3] = theta * x[:, 1] + x[:, 5].sin()
    return new


def all_doubled(x):
    return 2 * x


def frozen_after_an_edit(x):
    new, mask = x.clone(), torch.zeros_like(x, dtype=torch.bool)
    new[:, 1] = 0.0
    mask[:, 4] = True
    return StateEdit(new, mask)


def constants_equal_to_what_was_there(x):
    """As when patching from a run that differs only later: nothing is set before position 3."""
    new = x.detach().clone()
    new[:, 3:5] += 1
    return torch.cat([new[:, :5], x[:, 5:]], 1)


def detached(x):
    return x.detach()


def set_and_detached(x):
    return some_entries(x).detach()


def at_two(x):
    return torch.stack([2 * x[:, 0], x[:, 1] + theta], 1)


PAIRS = [
    (look, look),
    (look, in_place),
    (in_place, look),
    (some_entries, from_elsewhere),
    (from_elsewhere, some_entries),
    (all_doubled, constants_equal_to_what_was_there),
    (set_and_detached, in_place),
    (some_entries, detached),
    (look, set_and_detached),
    (At((1, 4), at_two), At((0, 4), at_two)),
    (At((3,), detached), At((0, 3, 5), detached)),
]


def names(pair):
    return " and ".join(getattr(edit, "__name__", "at") for edit in pair)
