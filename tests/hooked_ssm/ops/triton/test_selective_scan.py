"""The scan's kernels against the reference in float64: outputs, every gradient, states, edits.

Tiles are cut to 4 positions of 4 channels, so that documents and channels take several, the last not full.
"""

from functools import partial

import pytest
import torch
from torch import nn

pytest.importorskip("triton")

from hooked_ssm.ops.at import At
from hooked_ssm.ops.backends import use_backend
from hooked_ssm.ops.selective_scan import selective_scan
from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.ops.triton.scan_launch import Tile
from hooked_ssm.ops.triton.selective_scan import triton_selective_scan

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TILE = Tile(pos=4, channels=4, warps=1)
SHAPE = (2, 7, 3, 2)  # batch, positions, d_inner, d_state
EDITS = "edit_decay", "edit_write", "edit_state"
triton_scan = partial(triton_selective_scan, tile=TILE)


def sample(batch, pos, d_inner, d_state, dtype=torch.float64, per_channel=()):
    def normal(*shape):
        return torch.randn(shape, dtype=torch.float64)

    def selection(name):
        return normal(batch, pos, d_inner, d_state) if name in per_channel else normal(batch, pos, d_state)

    dt = torch.rand((batch, pos, d_inner), dtype=torch.float64)
    A = -4 * torch.rand((d_inner, d_state), dtype=torch.float64)
    inputs = (
        normal(batch, pos, d_inner),
        dt,
        A,
        selection("B"),
        selection("C"),
        normal(batch, d_inner, d_state),
    )
    return [tensor.to(DEVICE, dtype).requires_grad_() for tensor in inputs]


def reference(*inputs, **edits):
    with use_backend("torch"):
        return selective_scan(*inputs, **edits)


def results(scan, inputs, wrt=(), **edits):
    """y, the last state, and every gradient of a loss on both."""
    y, last = scan(*inputs, **edits)
    g = torch.Generator().manual_seed(1)
    # the same in every dtype
    grads = [torch.randn(out.shape, generator=g).bfloat16().to(out) for out in (y, last)]
    outs, grads = zip(*[pair for pair in zip((y, last), grads) if pair[0].requires_grad])
    wrt = [*inputs, *wrt]
    return [y, last, *torch.autograd.grad(outs, wrt, grads, allow_unused=True, materialize_grads=True)]


def assert_all_close(got, want, rtol=1e-10, atol=1e-11):
    names = ["y", "last", "x", "dt", "A", "B", "C", "initial"]
    for i, (one, other) in enumerate(zip(got, want, strict=True)):
        name = names[i] if i < len(names) else f"tensor {i}"
        torch.testing.assert_close(
            one, other, rtol=rtol, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 1, 3, 2), (1, 4, 4, 2), (1, 9, 5, 3)], ids=str)
@pytest.mark.parametrize("n_inputs", [5, 6], ids=["zero", "initial"])
def test_outputs_and_every_gradient_are_the_references(shape, n_inputs):
    inputs = sample(*shape)[:n_inputs]
    assert_all_close(results(triton_scan, inputs), results(reference, inputs))


@pytest.mark.parametrize("per_channel", ["B", "C"])
def test_per_channel_B_and_C(per_channel):
    inputs = sample(1, 5, 5, 2, per_channel=per_channel)
    assert_all_close(results(triton_scan, inputs), results(reference, inputs))


def test_the_tile_that_would_be_chosen_on_a_gpu():
    inputs = sample(1, 19, 3, 1)
    assert_all_close(results(triton_selective_scan, inputs), results(reference, inputs))


def test_what_does_not_lie_contiguous_in_memory():
    x, dt, A, B, C, initial = sample(*SHAPE)
    inputs = [x.mT.contiguous().mT, dt.mT.contiguous().mT, A.t().contiguous().t()]
    inputs += [
        torch.cat([B, C], dim=2)[..., :2],
        torch.cat([B, C], dim=2)[..., 2:],
        initial.mT.contiguous().mT,
    ]
    assert_all_close(triton_scan(*inputs), reference(x, dt, A, B, C, initial))


def test_half_precision_is_computed_in_single():
    inputs = sample(*SHAPE, dtype=torch.bfloat16)
    got = results(triton_scan, inputs)
    assert [t.dtype for t in got] == [torch.bfloat16, torch.float32, *[torch.bfloat16] * 6]
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    # Every number is rounded once, at the end; the interpreter cuts off instead.
    for one, other in zip(got, results(reference, doubles), strict=True):
        torch.testing.assert_close(one.double(), other, rtol=2**-7, atol=1e-5)


def test_single_precision_is_close_to_double():
    inputs = sample(1, 9, 4, 2, dtype=torch.float32)
    doubles = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for one, other in zip(results(triton_scan, inputs), results(reference, doubles), strict=True):
        assert (one.double() - other).norm() <= 1e-6 * other.norm()


@pytest.mark.parametrize("used", [0, 1], ids=["y", "last"])
def test_a_loss_may_use_only_one_output(used):
    inputs = sample(1, 5, 3, 2)
    got = torch.autograd.grad(triton_scan(*inputs)[used].sum(), inputs)
    want = torch.autograd.grad(
        reference(*inputs)[used].sum(), inputs, allow_unused=True, materialize_grads=True
    )
    assert_all_close(got, want)


def same(tensor):
    return tensor


@pytest.mark.parametrize("names", [EDITS, EDITS[:1], EDITS[2:]], ids=["all", "decay", "state"])
@pytest.mark.parametrize("positions", [None, (5,)], ids=["everywhere", "at 5"])
def test_looking_changes_no_bit_and_no_gradient(names, positions):
    inputs = sample(*SHAPE)
    edits = {name: same if positions is None else At(positions, same) for name in names}
    y, last = triton_scan(*(tensor.detach() for tensor in inputs))
    got = results(triton_scan, inputs, **edits)
    assert torch.equal(got[0], y) and torch.equal(got[1], last)
    assert_all_close(got, results(reference, inputs))
    with torch.inference_mode():
        assert all(map(torch.equal, triton_scan(*inputs, **edits), (y, last)))


@pytest.mark.parametrize("positions", [None, (0, 2, 5)], ids=["everywhere", "at 0, 2, 5"])
def test_what_hooks_are_handed(positions):
    inputs = sample(*SHAPE)
    handed = {"triton": {}, "reference": {}}

    def edits(who):
        def keep(name):
            look = lambda tensor: handed[who].setdefault(name, tensor)
            return look if positions is None else At(positions, look)

        return {name: keep(name) for name in EDITS}

    triton_scan(*inputs, **edits("triton"))
    reference(*inputs, **edits("reference"))
    for name, tensor in handed["triton"].items():
        assert not tensor._is_view()
        assert tensor.untyped_storage().nbytes() == tensor.numel() * 8
        torch.testing.assert_close(tensor, handed["reference"][name])


theta = torch.linspace(-1, 1, 2, dtype=torch.float64, device=DEVICE, requires_grad=True)


def set_one(h):
    h = h.clone()
    h[:, 0] = 0.5
    h[:, -1, 1] = 2 * h[:, -1, 1]
    return h


def set_in_place(h):
    h[:, 0, :2] = theta
    h[:, -1] *= 0.5


def freeze(h):
    new = h.clone()
    new[:, 0] = theta
    mask = torch.zeros(h.shape[1], 1, 1, dtype=torch.bool, device=h.device)
    mask[-1] = True
    return StateEdit(new, mask)


def through_the_raw_states(h):
    return torch.cat([h[:, :1], theta * h[:, 1:2].sin(), h[:, 2:] + 0.1 * h[:, :1]], dim=1)


def detached(h):
    return set_one(h).detach()


def adding_to_the_gradient(h):
    h = h.clone()
    h.register_hook(lambda grad: grad + 0.25)
    return h


STATE_EDITS = [
    set_one,
    set_in_place,
    freeze,
    through_the_raw_states,
    detached,
    adding_to_the_gradient,
    torch.detach,
]


@pytest.mark.parametrize("edit", STATE_EDITS, ids=lambda edit: edit.__name__)
@pytest.mark.parametrize("positions", [None, (5, 6, 8)], ids=["everywhere", "at 5, 6, 8"])
def test_edited_states(edit, positions):
    inputs = sample(1, 9, 3, 2)
    edit = edit if positions is None else At(positions, edit)
    want = results(reference, inputs, [theta], edit_state=edit)
    assert_all_close(results(triton_scan, inputs, [theta], edit_state=edit), want)


@pytest.mark.parametrize("edit", [set_one, set_in_place, through_the_raw_states, adding_to_the_gradient])
@pytest.mark.parametrize("positions", [None, (2, 4, 5)], ids=["everywhere", "at 2, 4, 5"])
def test_edited_decays_and_writes_and_states_at_once(edit, positions):
    inputs = sample(1, 6, 3, 2)
    edits = dict.fromkeys(EDITS, edit if positions is None else At(positions, edit))
    assert_all_close(
        results(triton_scan, inputs, [theta], **edits), results(reference, inputs, [theta], **edits)
    )


@pytest.mark.parametrize("patched", [False, True], ids=["watched", "patched"])
def test_a_backward_hook_of_a_module_sees_the_total_derivative(patched):
    inputs = sample(*SHAPE)
    seen = {}

    def watched(who):
        class Hook(nn.Module):
            def forward(self, h):
                return set_one(h) if patched else h

        hook = Hook()
        hook.register_full_backward_hook(lambda module, grad_in, grad_out: seen.update({who: grad_out[0]}))
        return hook

    got = results(triton_scan, inputs, edit_state=watched("triton"))
    want = results(reference, inputs, edit_state=watched("reference"))
    assert_all_close([*got, seen["triton"]], [*want, seen["reference"]])


# The interpreter computes both sides of a choice, and numpy warns of the one that is no number.
@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
@pytest.mark.parametrize("positions", [None, (6,)], ids=["everywhere", "at 6"])
def test_infinity_ends_where_a_state_is_set(positions):
    """In the middle of the second of three tiles; the gradient of what it was set to is the reference's."""
    inputs = sample(1, 10, 3, 2)
    with torch.no_grad():
        inputs[0][:, 1, :2] = torch.inf

    def edit(h):
        h = h.clone()
        h[:, 6 if positions is None else 0, :1] = theta
        return h

    edit_state = edit if positions is None else At(positions, edit)
    (y, last), (wanted, wanted_last) = (f(*inputs, edit_state=edit_state) for f in (triton_scan, reference))
    assert y[:, 6:, 0].isfinite().all() and last[:, 0].isfinite().all() and y[..., 2].isfinite().all()
    assert not y[:, 1:, 1].isfinite().any()
    after = [x[:, 6:, 0] for x in (y, wanted)]
    assert_all_close([*after, last[:, 0]], [after[1], after[1], wanted_last[:, 0]])
    of_theta, wanted_of_theta = (torch.autograd.grad(x.square().sum(), theta)[0] for x in after)
    torch.testing.assert_close(of_theta, wanted_of_theta)


def test_only_the_states_need_a_gradient():
    inputs = [tensor.detach() for tensor in sample(*SHAPE)]
    for positions in (None, (5,)):
        edit = freeze if positions is None else At(positions, freeze)
        losses = [scan(*inputs, edit_state=edit)[0].square().sum() for scan in (triton_scan, reference)]
        got, want = (torch.autograd.grad(loss, theta) for loss in losses)
        torch.testing.assert_close(got, want)


def test_memory_is_for_the_positions_asked_for():
    shapes = []
    inputs = sample(*SHAPE)
    edit = At((4,), lambda h: shapes.append((tuple(h.shape), h.untyped_storage().nbytes())))
    triton_scan(*inputs, **dict.fromkeys(EDITS, edit))
    assert shapes == [((2, 1, 3, 2), 2 * 3 * 2 * 8)] * 3


@pytest.mark.parametrize("name", EDITS)
def test_what_cannot_stand_in_for_the_quantity_raises(name):
    inputs = sample(1, 4, 3, 2)
    with pytest.raises(ValueError, match=r"\(1, 4, 3, 2\), got \(1, 3, 3, 2\)"):
        triton_scan(*inputs, **{name: lambda tensor: tensor[:, 1:]})
    with pytest.raises(TypeError, match=r"torch.float64.*torch.float32"):
        triton_scan(*inputs, **{name: torch.Tensor.float})
    with pytest.raises(ValueError, match=r"distinct and lie in 0..3, got \[4\]"):
        triton_scan(*inputs, **{name: At((4,), same)})


def test_no_document():
    y, last = triton_scan(*sample(0, 5, 3, 2))
    assert y.shape == (0, 5, 3) and last.shape == (0, 3, 2)
