"""linear_attention against a Python loop under plain autograd, and its two paths against each other."""

import pytest
import torch
from torch import Tensor

from hooked_ssm.ops import StateEdit, linear_attention
from hooked_ssm.ops.causal_matrix import linear_attention_matrix

NAMES = ["o", "last_state", "q", "k", "v", "log_decay or initial", "initial"]
DECAYS = [None, "head", "channel"]
LENGTHS = [1, 2, 7, 8, 9, 63, 64, 65, 100, 101, 130]


def loop(q, k, v, decay=None, initial=None, edit_state=None):
    """S_t = a_t S_{t-1} + k_t v_t^T, o_t = S_t^T q_t, for decays that are factors."""
    heads = v.shape[2]
    q, k = (x.repeat_interleave(heads // x.shape[2], dim=2) for x in (q, k))
    S = torch.zeros_like(k[:, 0, :, :, None] * v[:, 0, :, None]) if initial is None else initial
    reads = []
    for t in range(v.shape[1]):
        if decay is not None:
            S = S * decay[:, t].reshape(*decay[:, t].shape, *[1] * (S.ndim - decay.ndim + 1))
        S = S + k[:, t, :, :, None] * v[:, t, :, None]
        S = S if edit_state is None else edit_state(S, t)
        reads.append((S * q[:, t, :, :, None]).sum(2))
    return torch.stack(reads, 1), S


def loop_of_logarithms(q, k, v, log_decay=None, initial=None):
    return loop(q, k, v, None if log_decay is None else log_decay.exp(), initial)


def sample(
    length,
    by=None,
    *,
    batch=2,
    heads=2,
    groups=None,
    d_key=3,
    d_value=4,
    size=1.0,
    initial=False,
    dtype=torch.float64,
):
    """The arguments in order, decays up to exp(-size); without what is not there."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=dtype)

    keys = batch, length, groups or heads, d_key
    inputs = [normal(*keys), normal(*keys), normal(batch, length, heads, d_value)]
    if by is not None:
        shape = (batch, length, heads, d_key)[: 3 if by == "head" else 4]
        inputs.append(-size * torch.rand(shape, generator=g, dtype=dtype))
    if initial:
        inputs.append(normal(batch, heads, d_key, d_value))
    return [x.requires_grad_() for x in inputs]


def call(attend, inputs, by, **kwargs):
    q, k, v, *rest = inputs
    log_decay = rest.pop(0) if by is not None else None
    return attend(q, k, v, log_decay, rest[0] if rest else None, **kwargs)


def results(attend, inputs, by, **kwargs):
    """o, the last state, and the gradients of a loss on both."""
    outputs = call(attend, inputs, by, **kwargs)
    g = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64).to(x.dtype) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights, materialize_grads=True)]


def assert_close(got, wanted, tolerance=1e-12):
    """Each to within the tolerance times its largest entry."""
    assert len(got) == len(wanted)
    for name, one, other in zip(NAMES, got, wanted, strict=False):
        assert one.shape == other.shape and one.dtype == other.dtype, name
        assert one.isfinite().all(), name
        assert (one - other).abs().max() <= tolerance * other.abs().max(), name


def same(tensor):
    return tensor


LOOKS = {"edit_write": same, "edit_state": same}


def looks(by):
    return LOOKS if by is None else {**LOOKS, "edit_decay": same}


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("by", DECAYS)
@pytest.mark.parametrize("initial", [False, True], ids=["zero", "initial"])
def test_outputs_and_every_gradient_are_those_of_the_loop(by, initial, length):
    inputs = sample(length, by, initial=initial)
    wanted = results(loop_of_logarithms, inputs, by)
    assert_close(results(linear_attention, inputs, by), wanted)
    assert_close(results(linear_attention, inputs, by, **looks(by)), wanted)


@pytest.mark.parametrize("by", DECAYS)
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 1), (4, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("length", [1, 9, 130])
def test_heads_of_a_group_share_queries_and_keys(by, heads, groups, length):
    inputs = sample(length, by, batch=1, heads=heads, groups=groups, initial=True)
    wanted = results(loop_of_logarithms, inputs, by)
    assert_close(results(linear_attention, inputs, by), wanted)
    assert_close(results(linear_attention, inputs, by, **looks(by)), wanted)


@pytest.mark.parametrize("by", DECAYS)
@pytest.mark.parametrize("chunk", [1, 2, 3, 8, 64])
def test_chunks_change_no_number(by, chunk):
    inputs = sample(13, by, initial=True)
    assert_close(results(linear_attention, inputs, by, chunk=chunk), results(loop_of_logarithms, inputs, by))


@pytest.mark.parametrize("by", ["head", "channel"])
@pytest.mark.parametrize("size", [1e-6, 30.0, 1e3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_long_documents_with_any_decay_neither_overflow_nor_lose_digits(by, size, dtype):
    inputs = sample(300, by, size=size, initial=True, dtype=dtype)
    wanted = results(loop_of_logarithms, [x.detach().double().requires_grad_() for x in inputs], by)
    tolerance = 5e-6 if dtype == torch.float32 else 1e-12
    assert_close(results(linear_attention, inputs, by), [x.to(dtype) for x in wanted], tolerance)


@pytest.mark.parametrize("by", ["head", "channel"])
@pytest.mark.parametrize("length", [9, 130])
def test_a_decay_of_exactly_zero_erases_the_memory(by, length):
    inputs = sample(length, by, initial=True)
    with torch.no_grad():
        inputs[3][:, 4] = -torch.inf
    got = results(linear_attention, inputs, by)
    assert_close(got, results(loop_of_logarithms, inputs, by))
    q, k, v, log_decay, _ = inputs
    from_there, last = linear_attention(q[:, 4:], k[:, 4:], v[:, 4:], log_decay[:, 4:])
    assert_close([got[0][:, 4:], got[1]], [from_there, last])


@pytest.mark.parametrize("by", DECAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("length", [1, 37, 130])
def test_looking_changes_no_bit(by, dtype, length):
    inputs = sample(length, by, initial=True, dtype=dtype)
    o, last = call(linear_attention, inputs, by)
    for name, edit in looks(by).items():
        for looking in (edit, torch.clone, lambda tensor: None):
            seen, seen_last = call(linear_attention, inputs, by, **{name: looking})
            assert torch.equal(seen, o) and torch.equal(seen_last, last), name


@pytest.mark.parametrize("by", DECAYS)
def test_gradcheck(by):
    for kwargs in ({}, {"chunk": 2}, looks(by)):
        inputs = sample(5, by, batch=1, d_key=2, d_value=2, initial=True)
        assert torch.autograd.gradcheck(
            lambda *inputs, kwargs=kwargs: call(linear_attention, inputs, by, **kwargs), inputs
        )


@pytest.mark.parametrize("by", ["head", "channel"])
@pytest.mark.parametrize("value", [0.0, -0.7, 1.5])
@pytest.mark.parametrize("length", [9, 70])
def test_an_edited_decay_is_a_factor(by, value, length):
    """0 (nothing is kept), negative (what is kept is turned over) and above 1 alike."""
    q, k, v, log_decay, initial = sample(length, by, initial=True)

    def edit(decay):
        return torch.cat([decay[:, :4], torch.full_like(decay[:, 4:5], value), decay[:, 5:]], dim=1)

    def edited_loop(q, k, v, log_decay, initial):
        return loop(q, k, v, edit(log_decay.exp()), initial)

    inputs = [q, k, v, log_decay, initial]
    assert_close(results(linear_attention, inputs, by, edit_decay=edit), results(edited_loop, inputs, by))


@pytest.mark.parametrize("by", DECAYS)
def test_edited_writes_and_states_are_computed_with(by):
    inputs = sample(9, by, initial=True)
    _, _, v, *rest = inputs
    decay = rest[0].exp() if by is not None else None
    value = torch.randn(2, 2, 3, 4, generator=torch.Generator().manual_seed(3), dtype=v.dtype)

    def set_state(states: Tensor) -> None:
        states[:, 5] = value

    def set_in_loop(S: Tensor, t: int) -> Tensor:
        return value if t == 5 else S

    got = call(linear_attention, inputs, by, edit_state=set_state)
    assert_close(got, loop(*inputs[:3], decay, rest[-1], set_in_loop))

    def erase(write: Tensor) -> Tensor:
        return write * (torch.arange(9) != 3)[:, None, None, None]

    got = call(linear_attention, inputs, by, edit_write=erase)
    k = inputs[1] * (torch.arange(9) != 3)[:, None, None]
    assert_close(got, loop(inputs[0], k, v, decay, rest[-1]))


def test_a_state_can_be_frozen():
    q, k, v, log_decay = sample(9, "head")

    def edit(states: Tensor) -> StateEdit:
        mask = torch.zeros(9, dtype=torch.bool)
        mask[6] = True
        edited = states.clone()
        edited[:, 3] = 0
        return StateEdit(edited, mask[:, None, None, None])

    plain, last = linear_attention(q, k, v, log_decay)
    got, frozen = linear_attention(q, k, v, log_decay, edit_state=edit)
    assert_close([got[:, 6:], frozen], [plain[:, 6:], last])
    assert (got[:, 3] == 0).all() and not torch.allclose(got[:, 4:6], plain[:, 4:6])


@pytest.mark.parametrize("by", DECAYS)
def test_half_precision_is_computed_in_float32(by):
    inputs = [x.detach().bfloat16() for x in sample(9, by)]
    o, last = call(linear_attention, inputs, by)
    wanted, wanted_last = call(linear_attention, [x.float() for x in inputs], by)
    assert o.dtype == torch.bfloat16 and torch.equal(o, wanted.bfloat16())
    assert last.dtype == torch.float32 and torch.equal(last, wanted_last)


@pytest.mark.parametrize("by", DECAYS)
@pytest.mark.parametrize("length", [1, 2, 9, 16])
def test_the_matrix_times_the_values_is_the_output(by, length):
    q, k, v, *rest = sample(length, by)
    decay = rest[0].exp() if rest else None
    if decay is not None and length > 4:
        with torch.no_grad():
            decay[:, 2], decay[:, 4] = -decay[:, 2], 0
    matrix = linear_attention_matrix(q, k, decay)
    assert (matrix.triu(1) == 0).all()
    assert_close([torch.einsum("bhij,bjhd->bihd", matrix, v)], [loop(q, k, v, decay)[0]])


def test_wrong_arguments_are_refused():
    q, k, v, log_decay, initial = sample(4, "head", heads=4, groups=2, initial=True)
    wrong = {
        r"multiple of those of q, got 4 and 3": (q.new_zeros(2, 4, 3, 3), k, v),
        r"k must have shape \(2, 4, 2, 3\) .* got \(2, 3, 2, 3\)": (q, k[:, 1:], v),
        r"at least one position, got": (q[:, :0], k[:, :0], v[:, :0]),
        r"got \(2, 4, 3\) and": (q[:, :, 0], k[:, :, 0], v),
        r"log_decay must have shape \(2, 4, 4\) or \(2, 4, 4, 3\) .* got \(2, 4, 3\)": (
            *(q, k, v),
            log_decay[:, :, 1:],
        ),
        r"initial must have shape \(2, 4, 3, 4\) .* got \(2, 4, 3\)": (q, k, v, log_decay, initial[..., 0]),
    }
    attend = getattr(linear_attention, "__wrapped__", linear_attention)  # past the tests' own type checks
    for message, arguments in wrong.items():
        with pytest.raises(ValueError, match=message):
            attend(*arguments)
    with pytest.raises(ValueError, match="no decays to edit: log_decay is None"):
        linear_attention(q, k, v, edit_decay=same)
    with pytest.raises(ValueError, match="chunk must be at least 1, got 0"):
        linear_attention(q, k, v, chunk=0)
    with pytest.raises(ValueError, match="a hook on the writes must return shape"):
        linear_attention(q, k, v, edit_write=lambda write: write[:, 1:])
