"""selective_scan against a Python loop under plain autograd, and its two paths against each other."""

import inspect

import pytest
import torch

from hooked_ssm.ops import StateEdit, selective_scan
from hooked_ssm.ops.blocked_scan import LEAST_CHANNELS, blocked_selective_scan

pytestmark = pytest.mark.usefixtures("backend")


def loop(x, dt, A, B, C, initial=None, edit_state=None):
    """h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t, y_t = h_t C_t; `edit_state(h_t, t)` replaces each state."""
    B, C = (tensor if tensor.ndim == 4 else tensor.unsqueeze(2) for tensor in (B, C))
    h = torch.zeros(x.shape[0], *A.shape, dtype=x.dtype) if initial is None else initial
    reads = []
    for t in range(x.shape[1]):
        dt_t = dt[:, t].unsqueeze(-1)
        h = torch.exp(dt_t * A) * h + dt_t * x[:, t].unsqueeze(-1) * B[:, t]
        h = h if edit_state is None else edit_state(h, t)
        reads.append((h * C[:, t]).sum(-1))
    return torch.stack(reads, 1), h


def sample(batch, pos, d_inner, d_state, dtype=torch.float64, per_channel=(), seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=dtype)

    def selection(name):
        return normal(batch, pos, d_inner, d_state) if name in per_channel else normal(batch, pos, d_state)

    dt = torch.rand((batch, pos, d_inner), generator=g, dtype=dtype)
    A = -4 * torch.rand((d_inner, d_state), generator=g, dtype=dtype)
    inputs = (
        normal(batch, pos, d_inner),
        dt,
        A,
        selection("B"),
        selection("C"),
        normal(batch, d_inner, d_state),
    )
    return [tensor.requires_grad_() for tensor in inputs]


def same(tensor):
    return tensor


IDENTITIES = {"edit_decay": same, "edit_write": same, "edit_state": same}
SHAPES = [(1, 1, 1, 1), (2, 1, 3, 4), (1, 7, 5, 3), (3, 13, 8, 16), (2, 37, 12, 4), (1, 130, 17, 16)]
NAMES = ["y", "last_state", "x", "dt", "A", "B", "C", "initial"]


def results(scan, inputs, wrt=None, **kwargs):
    """y, the last state, and the gradients of a loss on both."""
    y, last = scan(*inputs, **kwargs)
    g = torch.Generator().manual_seed(1)
    grads = [torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype) for out in (y, last)]
    return [y, last, *torch.autograd.grad((y, last), inputs if wrt is None else wrt, grads)]


def assert_all_close(got, want, rtol=1e-10, atol=1e-11):
    for name, one, other in zip(NAMES, got, want, strict=False):
        torch.testing.assert_close(
            one, other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert len(got) == len(want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_inputs", [5, 6], ids=["zero", "initial"])
@pytest.mark.parametrize(
    "edits", [{}, IDENTITIES, {"edit_decay": same}], ids=["fast", "explicit", "decay only"]
)
def test_outputs_and_every_gradient_are_those_of_the_loop(shape, n_inputs, edits):
    inputs = sample(*shape)[:n_inputs]
    assert_all_close(results(selective_scan, inputs, **edits), results(loop, inputs))


@pytest.mark.parametrize("per_channel", ["B", "C", "BC"])
@pytest.mark.parametrize("edits", [{}, IDENTITIES], ids=["no hooks", "hooks"])
def test_per_channel_B_and_C_are_those_of_the_loop(per_channel, edits):
    inputs = sample(2, 9, 5, 3, per_channel=per_channel)
    assert_all_close(results(selective_scan, inputs, **edits), results(loop, inputs))


@pytest.mark.parametrize("edits", [{}, IDENTITIES], ids=["fast", "explicit"])
def test_gradcheck(edits):
    assert torch.autograd.gradcheck(lambda *inputs: selective_scan(*inputs, **edits), sample(2, 4, 3, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("n_inputs", [5, 6], ids=["zero", "initial"])
def test_looking_changes_no_bit(dtype, shape, n_inputs):
    inputs = sample(*shape, dtype=dtype)[:n_inputs]
    y, last = selective_scan(*inputs)
    for edits in ({name: same} for name in IDENTITIES):
        assert_equal(selective_scan(*inputs, **edits), (y, last))
    assert_equal(selective_scan(*inputs, **IDENTITIES), (y, last))
    assert_equal(selective_scan(*inputs, **dict.fromkeys(IDENTITIES, torch.clone)), (y, last))
    with torch.no_grad():
        assert_equal(selective_scan(*inputs), (y, last))
    with torch.inference_mode():
        assert_equal(selective_scan(*inputs, **IDENTITIES), (y, last))


def test_looking_changes_no_bit_where_there_are_many_channels():
    inputs = sample(8, 37, 2 * LEAST_CHANNELS + 2, 16, dtype=torch.float32)
    assert_equal(selective_scan(*inputs, **IDENTITIES), selective_scan(*inputs))


def test_shared_B_and_C_given_per_channel_change_no_bit():
    x, dt, A, B, C, initial = sample(2, 9, 5, 3, dtype=torch.float32)
    B_each, C_each = (tensor.unsqueeze(2).repeat(1, 1, 5, 1) for tensor in (B, C))
    assert_equal(selective_scan(x, dt, A, B_each, C_each, initial), selective_scan(x, dt, A, B, C, initial))


def assert_equal(got, want):
    assert all(torch.equal(one, other) for one, other in zip(got, want, strict=True))


@pytest.mark.parametrize("block_bytes", [1, 10**4, 10**5, 3 * 10**5, 10**6], ids=str)
@pytest.mark.parametrize("per_channel", ["", "B", "C"])
def test_the_size_of_blocks_changes_nothing_but_rounding(block_bytes, per_channel):
    """From 3 x 3 blocks to one, with one document's channels apart, or several documents together."""
    inputs = sample(3, 13, 2 * LEAST_CHANNELS + 9, 4, per_channel=per_channel)
    got = results(blocked_selective_scan, inputs, block_bytes=block_bytes)
    assert_all_close(got, results(loop, inputs), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("edits", [{}, IDENTITIES], ids=["fast", "explicit"])
def test_whole_is_two_halves(edits, backend):
    """To the bit where positions are taken one after the other."""
    inputs = x, dt, A, B, C, initial = sample(2, 11, 5, 3)

    def halves(x, dt, A, B, C, initial):
        y, middle = selective_scan(x[:, :4], dt[:, :4], A, B[:, :4], C[:, :4], initial, **edits)
        rest, last = selective_scan(x[:, 4:], dt[:, 4:], A, B[:, 4:], C[:, 4:], middle, **edits)
        return torch.cat([y, rest], 1), last

    got, want = results(halves, inputs), results(selective_scan, inputs, **edits)
    if backend == "numba":
        assert_equal(got[:2], want[:2])
    assert_all_close(got, want)


@pytest.mark.parametrize("unused", ["y", "last"])
def test_a_loss_may_use_only_one_output(unused):
    inputs = sample(2, 7, 3, 4)
    used = 1 if unused == "y" else 0
    got = torch.autograd.grad(selective_scan(*inputs)[used].sum(), inputs)
    want = torch.autograd.grad(loop(*inputs)[used].sum(), inputs, allow_unused=True, materialize_grads=True)
    assert_all_close([None, None, *got][2:], [*want])


def test_float32_is_close_to_float64():
    inputs = sample(4, 64, 24, 16)
    single = [tensor.detach().float().requires_grad_() for tensor in inputs]
    for got, want in zip(results(selective_scan, single), results(loop, inputs), strict=True):
        assert (got.double() - want).norm() <= 1e-6 * want.norm()


def test_half_precision_is_computed_in_single():
    inputs = [tensor.detach().bfloat16().requires_grad_() for tensor in sample(2, 9, 5, 3)]
    y, last = selective_scan(*inputs)
    want_y, want_last = selective_scan(*(tensor.float() for tensor in inputs))
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    assert_equal((y, last), (want_y.bfloat16(), want_last))
    grads = torch.autograd.grad(y.sum(), inputs)
    assert {grad.dtype for grad in grads} == {torch.bfloat16}


def set_position(states):
    states = states.clone()
    states[:, 3] = 0.5
    states[:, 6, 1] = 2 * states[:, 6, 1]
    return states


def test_edited_states_and_their_gradients_are_those_of_the_loop():
    inputs = sample(2, 9, 5, 3)

    def doubled_raw(x, dt, A, B, C, initial):
        """What the trajectory would have been, for position 6."""
        B = B.unsqueeze(2)
        h, raw = initial, []
        for t in range(7):
            dt_t = dt[:, t].unsqueeze(-1)
            h = torch.exp(dt_t * A) * h + dt_t * x[:, t].unsqueeze(-1) * B[:, t]
            raw.append(h)
        return 2 * raw[6][:, 1]

    def edited(*inputs):
        value = doubled_raw(*inputs)

        def edit(h, t):
            if t == 3:
                return torch.full_like(h, 0.5)
            return torch.cat([h[:, :1], value.unsqueeze(1), h[:, 2:]], 1) if t == 6 else h

        return loop(*inputs, edit_state=edit)

    assert_all_close(results(selective_scan, inputs, edit_state=set_position), results(edited, inputs))


def test_a_frozen_state_keeps_its_value_after_an_earlier_edit():
    inputs = sample(2, 9, 5, 3)
    seen = []

    def edit(states):
        seen.append(states.detach().clone())
        new = states.clone()
        new[:, 2] = 0
        mask = torch.zeros(9, 1, 1, dtype=torch.bool)
        mask[5] = True
        return StateEdit(new, mask)

    y, last = selective_scan(*inputs, edit_state=edit)
    plain, plain_last = selective_scan(*inputs)
    moved = (y - plain).abs().amax((0, 2)) > 1e-6
    assert moved.tolist() == [False, False, True, True, True, False, False, False, False]
    torch.testing.assert_close(last, plain_last, rtol=1e-12, atol=1e-12)


def test_the_gradient_at_the_states_is_total():
    """lambda_t = C_t g_t + exp(dt_{t+1} A) lambda_{t+1}."""
    inputs = x, dt, A, B, C, initial = sample(2, 6, 3, 4)
    seen = []
    y, last = selective_scan(*inputs, edit_state=lambda states: seen.append(states))
    grad = torch.randn_like(y)
    (got,) = torch.autograd.grad((y * grad).sum() + last.sum(), seen)
    later = torch.ones_like(last)
    for t in reversed(range(6)):
        later = later + grad[:, t].unsqueeze(-1) * C[:, t].unsqueeze(1)
        torch.testing.assert_close(got[:, t], later, rtol=1e-10, atol=1e-12)
        later = torch.exp(dt[:, t].unsqueeze(-1) * A) * later


@pytest.mark.parametrize("name", ["edit_decay", "edit_write"])
@pytest.mark.parametrize("in_place", [False, True], ids=["returned", "in place"])
def test_edited_decays_and_writes_are_computed_with(name, in_place):
    inputs = sample(2, 9, 5, 3)

    def edit(tensor):
        if in_place:
            tensor[:, 4] *= 0.5
            return None
        return torch.cat([tensor[:, :4], 0.5 * tensor[:, 4:5], tensor[:, 5:]], 1)

    def edited_loop(x, dt, A, B, C, initial):
        h, reads = initial, []
        for t in range(9):
            dt_t = dt[:, t].unsqueeze(-1)
            decay, write = torch.exp(dt_t * A), dt_t * x[:, t].unsqueeze(-1) * B[:, t].unsqueeze(1)
            decay = 0.5 * decay if t == 4 and name == "edit_decay" else decay
            write = 0.5 * write if t == 4 and name == "edit_write" else write
            h = decay * h + write
            reads.append((h * C[:, t].unsqueeze(1)).sum(-1))
        return torch.stack(reads, 1), h

    assert_all_close(results(selective_scan, inputs, **{name: edit}), results(edited_loop, inputs))


def test_what_hooks_are_handed_is_dense_and_what_it_says():
    x, dt, A, B, C, initial = inputs = sample(2, 9, 5, 3)
    handed = {}

    def keep(name):
        return lambda tensor: handed.setdefault(name, tensor)

    y, last = selective_scan(*inputs, **{name: keep(name) for name in IDENTITIES})
    decay, write, states = (handed[name] for name in IDENTITIES)
    for tensor in (decay, write, states):
        assert tensor.shape == (2, 9, 5, 3)
        order = sorted(range(4), key=tensor.stride, reverse=True)
        assert tensor.permute(order).is_contiguous()
    torch.testing.assert_close(decay, torch.exp(dt.unsqueeze(-1) * A))
    torch.testing.assert_close(write, (dt * x).unsqueeze(-1) * B.unsqueeze(2))
    torch.testing.assert_close(states[:, 0], decay[:, 0] * initial + write[:, 0])
    torch.testing.assert_close(states[:, 1:], decay[:, 1:] * states[:, :-1] + write[:, 1:])
    torch.testing.assert_close(y, torch.einsum("bpcn,bpn->bpc", states, C))
    torch.testing.assert_close(last, states[:, -1], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", IDENTITIES)
def test_what_cannot_stand_in_for_the_quantity_raises(name):
    inputs = sample(2, 9, 5, 3)
    with pytest.raises(ValueError, match=r"\(2, 9, 5, 3\), got \(2, 8, 5, 3\)"):
        selective_scan(*inputs, **{name: lambda tensor: tensor[:, 1:]})
    with pytest.raises(TypeError, match="torch.float64.*torch.float32"):
        selective_scan(*inputs, **{name: torch.Tensor.float})
    with pytest.raises(TypeError, match="must return a tensor.*got str"):
        selective_scan(*inputs, **{name: str})


@pytest.mark.parametrize(
    ("position", "shape", "message"),
    [
        (1, (2, 9, 4), r"dt must have shape \(2, 9, 5\).*got \(2, 9, 4\)"),
        (2, (4, 3), r"A must have shape \(5, 3\).*got \(4, 3\)"),
        (3, (2, 9, 4), r"B must have shape \(2, 9, 3\) or \(2, 9, 5, 3\).*got \(2, 9, 4\)"),
        (4, (2, 8, 5, 3), r"C must have shape .*got \(2, 8, 5, 3\)"),
        (5, (1, 5, 3), r"initial must have shape \(2, 5, 3\).*got \(1, 5, 3\)"),
        (0, (2, 0, 5), r"at least one position"),
    ],
)
def test_a_wrong_shape_raises_with_both_shapes(position, shape, message):
    inputs = sample(2, 9, 5, 3)
    inputs[position] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(selective_scan)(*inputs)  # beneath the type checker, if the tests run with one


def test_training_memory_is_not_a_trajectory():
    """What the graph keeps of the states is one every so many positions, or none."""
    inputs = [tensor.detach().float().requires_grad_() for tensor in sample(4, 300, 64, 16)[:5]]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, same):
        selective_scan(*inputs)
    trajectory = 4 * 300 * 64 * 16
    assert 0 < max(kept) <= trajectory / 10
