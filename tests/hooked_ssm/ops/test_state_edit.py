"""scan_with_edits against a Python loop that does what the words say, under plain autograd, in float64."""

import gc
import weakref

import pytest
import torch
from torch import nn

from hooked_ssm.ops import StateEdit, linear_scan, scan_with_edits
from hooked_ssm.ops.state_edit import _Memo

pytestmark = pytest.mark.usefixtures("backend")
SHAPE = (2, 7, 3, 4)
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


def loop(decay, write, edit, initial, nudge=None):
    """Run it, ask the hook, then run it again, setting what the hook set. `nudge` is added to each state."""

    def step(h, t):
        return write[:, t] if h is None else decay[:, t] * h + write[:, t]

    h, raw = initial, []
    for t in range(write.shape[1]):
        h = step(h, t)
        raw.append(h)
    raw = torch.stack(raw, 1)
    returned = edit(raw.clone())
    values, mask = (returned.states, returned.mask) if isinstance(returned, StateEdit) else (returned, None)
    set_at = values != raw
    if mask is not None:
        set_at = set_at | mask

    h, states = initial, []
    for t in range(write.shape[1]):
        h = torch.where(set_at[:, t], values[:, t], step(h, t))
        h = h if nudge is None else h + nudge[:, t]
        states.append(h)
    return torch.stack(states, 1)


theta = torch.linspace(-1, 1, 4, dtype=torch.float64, requires_grad=True)


def constants(s):
    s = s.clone()
    s[:, 2], s[:, 5] = 1.5, -0.25
    return s


def first_and_last(s):
    s = s.clone()
    s[:, 0], s[:, -1] = 2.0, 3.0
    return s


def some_entries(s):
    s = s.clone()
    s[0, 1, 2, 1:3] = 4.0
    s[1, 4, :, 0] = 5.0
    return s


def first_entry_only(s):
    s = s.clone()
    s[:, 0, 0, 0] = 2.0
    return s


def doubled(s):
    s = s.clone()
    s[:, 3] = 2 * s[:, 3]
    return s


def all_doubled(s):
    return 2 * s


def from_elsewhere(s):
    """Set to functions of the raw trajectory at other positions and channels, one before the other."""
    new = s.clone()
    new[:, 2] = s[:, 1].flip(-1) * s[:, 6]
    new[:, 4] = s.mean(1) + s[:, 3]
    return new


def parameter(s):
    s = s.clone()
    s[:, 3] = theta
    return s


def parameter_added(s):
    return s + theta * (torch.arange(SHAPE[1]) == 4).view(-1, 1, 1)


def parameter_in_a_detached_copy(s):
    s = s.detach().clone()
    s[:] = theta
    return s


def frozen_after_an_edit(s):
    s = s.clone()
    s[:, 1] = 0.0
    mask = torch.zeros(SHAPE[1], 1, 1, dtype=torch.bool)
    mask[4] = True
    return StateEdit(s, mask)


def freeze_alone(s):
    mask = torch.zeros(SHAPE, dtype=torch.bool)
    mask[:, 4, :, 1] = True
    return StateEdit(s, mask)


def everything_frozen(s):
    return StateEdit(s, torch.ones(1, dtype=torch.bool))


def constants_equal_to_what_was_there(s):
    """As when patching from a run that differs only later: nothing is set before position 3."""
    new = s.detach().clone()
    new[:, 3:5] += 1
    return torch.cat([new[:, :5], s[:, 5:]], 1)


def partly_detached(s):
    new = s.detach().clone()
    new[:, 3] = 2 * s[:, 3]
    return new


EDITS = [
    lambda s: s,
    torch.clone,
    constants,
    first_and_last,
    some_entries,
    first_entry_only,
    doubled,
    all_doubled,
    from_elsewhere,
    parameter,
    parameter_added,
    parameter_in_a_detached_copy,
    constants_equal_to_what_was_there,
    partly_detached,
    frozen_after_an_edit,
    freeze_alone,
    everything_frozen,
]
# Here a loss on the handed states cannot be told from the gradient of the states, as state_edit.py says.
DETACH_WHAT_THEY_LEAVE = [constants_equal_to_what_was_there, partly_detached]
each_edit = pytest.mark.parametrize("edit", EDITS, ids=lambda edit: getattr(edit, "__name__", "edit"))


@pytest.fixture
def inputs():
    g = torch.Generator().manual_seed(0)
    decay, write, initial, read = (torch.randn(shape, generator=g, dtype=torch.float64) for shape in
                                   (SHAPE, SHAPE, SHAPE[:1] + SHAPE[2:], SHAPE))  # fmt: skip
    decay, write, initial = (tensor.requires_grad_() for tensor in (0.8 * decay, write, initial))
    return decay, write, initial, read


def gradients(states, read, wrt):
    loss = (states * read).sum() + (states**2).sum()
    return torch.autograd.grad(loss, wrt, allow_unused=True, materialize_grads=True)


@each_edit
@pytest.mark.parametrize("with_initial", [False, True], ids=["zero", "initial"])
def test_states_and_gradients_are_those_of_the_loop(edit, with_initial, inputs):
    decay, write, initial, read = inputs
    start = initial if with_initial else None
    expected = loop(decay, write, edit, start)
    states = scan_with_edits(decay, write, edit, start)
    torch.testing.assert_close(states, expected, **CLOSE)
    wrt = (decay, write, initial, theta)
    for got, want in zip(gradients(states, read, wrt), gradients(expected, read, wrt), strict=True):
        torch.testing.assert_close(got, want, **CLOSE)


@each_edit
def test_returned_states_receive_the_total_derivative(edit, inputs):
    """The derivative by what is added to a state, set or not, and carried on."""
    decay, write, initial, read = inputs
    nudge = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    (want,) = gradients(loop(decay, write, edit, initial, nudge), read, [nudge])

    kept = []

    def keeping(s):
        returned = edit(s)
        kept.append(returned.states if isinstance(returned, StateEdit) else returned)
        return returned

    (got,) = gradients(scan_with_edits(decay, write, keeping, initial), read, kept)
    torch.testing.assert_close(got, want, **CLOSE)


@pytest.mark.parametrize("edit", [lambda s: None, torch.clone, constants, some_entries])
def test_handed_states_receive_the_total_derivative_but_where_set(edit, inputs):
    decay, write, initial, read = inputs
    nudge = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)

    def returned(s):
        new = edit(s)
        return s if new is None else new

    (want,) = gradients(loop(decay, write, returned, initial, nudge), read, [nudge])
    set_at = returned(torch.zeros(SHAPE)) != 0
    seen = []
    (got,) = gradients(
        scan_with_edits(decay, write, lambda s: edit(seen.append(s) or s), initial), read, seen
    )
    torch.testing.assert_close(got, want.masked_fill(set_at, 0), **CLOSE)


def test_total_derivative_is_that_of_finite_differences(inputs):
    decay, write, initial, read = (tensor.detach() for tensor in inputs)
    seen = []

    def look(s):
        seen.append(s)

    write.requires_grad_()
    states = scan_with_edits(decay, write, look, initial)
    (grad,) = torch.autograd.grad((states**2 * read).sum(), seen)
    for entry in [(0, 0, 0, 0), (1, 3, 2, 1), (0, 6, 1, 3)]:

        def loss_at(value, entry=entry):
            def put(s):
                s[entry] += value

            with torch.no_grad():
                return (scan_with_edits(decay, write, put, initial) ** 2 * read).sum()

        difference = (loss_at(1e-5) - loss_at(-1e-5)) / 2e-5
        torch.testing.assert_close(grad[entry], difference, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("edit", [edit for edit in EDITS if edit not in DETACH_WHAT_THEY_LEAVE])
def test_a_loss_on_the_handed_states_themselves_is_carried_back_too(edit, inputs):
    decay, write, initial, read = inputs

    def run(scan):
        seen = []
        states = scan(decay, write, lambda s: edit(seen.append(s) or s), initial)
        return torch.autograd.grad(
            (states * read).sum() + (seen[0] ** 3).sum(), (decay, write, initial, theta), allow_unused=True
        )

    for got, want in zip(run(scan_with_edits), run(loop), strict=True):
        assert (got is None) == (want is None)
        if got is not None:
            torch.testing.assert_close(got, want, **CLOSE)


def test_a_loss_on_the_handed_states_alone_is_that_of_the_plain_scan(inputs):
    decay, write, initial, read = inputs
    seen = []
    scan_with_edits(decay, write, lambda s: constants(seen.append(s) or s), initial)
    got = gradients(seen[0], read, (decay, write, initial))
    want = gradients(linear_scan(decay, write, initial), read, (decay, write, initial))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_what_one_backward_pass_leaves_does_not_reach_the_next(inputs):
    decay, write, initial, read = inputs
    seen = []
    states = scan_with_edits(decay, write, lambda s: constants(seen.append(s) or s), initial)
    want = torch.autograd.grad((seen[0] * read).sum(), write, retain_graph=True)
    torch.autograd.grad(
        (states * read).sum(), seen, retain_graph=True
    )  # stops before the scan's own backward
    torch.autograd.grad((states * read).sum(), write, retain_graph=True)
    got = torch.autograd.grad((seen[0] * read).sum(), write)
    torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_gradcheck_through_an_edit(inputs):
    decay, write, initial, _ = inputs

    def run(decay, write, initial, theta):
        def edit(s):
            new = s.clone()
            new[:, 1] = theta * s[:, 1].sin()
            new[:, 3, 0] = theta
            return new

        return scan_with_edits(decay, write, edit, initial)

    short = [tensor.detach()[:1, :5, :2].requires_grad_() for tensor in (decay, write)]
    assert torch.autograd.gradcheck(run, [*short, initial.detach()[:1, :2].requires_grad_(), theta])


def test_complex_states():
    g = torch.Generator().manual_seed(0)
    decay, write = (
        torch.randn(2, 5, 3, generator=g, dtype=torch.complex128).requires_grad_() for _ in range(2)
    )
    for edit in (lambda s: s, lambda s: torch.cat([s[:, :2], s[:, 2:3] * 2j, s[:, 3:]], 1)):
        states, expected = scan_with_edits(decay, write, edit), loop(decay, write, edit, None)
        torch.testing.assert_close(states, expected, **CLOSE)
        for got, want in zip(
            torch.autograd.grad((states.abs() ** 2).sum(), (decay, write)),
            torch.autograd.grad((expected.abs() ** 2).sum(), (decay, write)),
            strict=True,
        ):
            torch.testing.assert_close(got, want, **CLOSE)


def write_in_place(s):
    s[:, 2] = 1.5
    s[:, 5] = -0.25


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("returns", [True, False], ids=["returned", "None"])
def test_an_edit_in_place_is_an_edit(mode, returns, inputs):
    decay, write, initial, read = inputs
    want = scan_with_edits(decay, write, constants, initial)

    def edit(s):
        write_in_place(s)
        return s if returns else None

    with mode():
        states = scan_with_edits(decay, write, edit, initial)
        assert torch.equal(states, want)
        assert torch.equal(
            scan_with_edits(decay, write, lambda s: s, initial), linear_scan(decay, write, initial)
        )
    if mode is torch.enable_grad:
        wrt = (decay, write, initial)
        for got, expected in zip(gradients(states, read, wrt), gradients(want, read, wrt), strict=True):
            torch.testing.assert_close(got, expected, **CLOSE)


def test_an_edit_in_place_through_a_parameter_learns(inputs):
    decay, write, initial, read = inputs

    def edit(s):
        s[:, 3] = theta

    wrt = (decay, write, initial, theta)
    got = gradients(scan_with_edits(decay, write, edit, initial), read, wrt)
    for one, other in zip(got, gradients(loop(decay, write, parameter, initial), read, wrt), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("patched", [False, True], ids=["watched", "patched"])
def test_a_backward_hook_of_a_module_sees_the_total_derivative(patched, inputs):
    decay, write, initial, read = inputs

    class Hook(nn.Module):
        def forward(self, s):
            return constants(s) if patched else s

    hook, grads = Hook(), []
    hook.register_full_backward_hook(lambda module, grad_in, grad_out: grads.append(grad_out[0]))
    states = scan_with_edits(decay, write, hook, initial)
    got = gradients(states, read, (decay, write, initial))

    edit = constants if patched else torch.clone
    nudge = torch.zeros(SHAPE, dtype=torch.float64, requires_grad=True)
    *want, total = gradients(loop(decay, write, edit, initial, nudge), read, (decay, write, initial, nudge))
    torch.testing.assert_close(grads, [total], **CLOSE)
    torch.testing.assert_close(got, tuple(want), **CLOSE)


def test_an_edit_in_place_that_torch_does_not_record_is_one_for_values_only(inputs):
    """As at any other hook: autograd takes what is written under no_grad for what was there."""
    decay, write, initial, read = inputs

    def edit(s):
        with torch.no_grad():
            s[:, 2] = 1.5
        return s

    got, want = scan_with_edits(decay, write, edit, initial), loop(decay, write, edit, initial)
    torch.testing.assert_close(got, want, **CLOSE)
    wrt = (decay, write, initial)
    for one, other in zip(gradients(got, read, wrt), gradients(want, read, wrt), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_a_backward_hook_that_adds_to_the_gradient_adds_to_every_earlier_one(inputs):
    decay, write, initial, read = inputs
    extra = torch.zeros(SHAPE, dtype=torch.float64)
    extra[:, 4] = 1.0

    def edit(s):
        s.register_hook(lambda grad: grad + extra)

    got = gradients(scan_with_edits(decay, write, edit, initial), read, (decay, write, initial))
    states = linear_scan(decay, write, initial)
    loss = (states * read).sum() + (states**2).sum() + (states * extra).sum()
    want = torch.autograd.grad(loss, (decay, write, initial))
    torch.testing.assert_close(got, want, **CLOSE)


def test_a_detached_return_stops_the_gradient(inputs):
    decay, write, initial, _ = inputs
    assert not scan_with_edits(decay, write, lambda s: s.detach(), initial).requires_grad
    assert not scan_with_edits(decay, write, lambda s: constants(s).detach(), initial).requires_grad


def test_nothing_edited_returns_what_the_plain_scan_does_to_the_bit(inputs):
    decay, write, initial, _ = inputs
    for edit in (lambda s: s, lambda s: None, torch.clone, lambda s: s.view(SHAPE)):
        assert torch.equal(scan_with_edits(decay, write, edit, initial), linear_scan(decay, write, initial))


def test_handed_states_are_dense_and_fresh(inputs):
    decay, write, initial, _ = inputs

    def look(s):
        assert not s._is_view() and s.is_contiguous()
        assert s.data_ptr() not in (decay.data_ptr(), write.data_ptr())

    scan_with_edits(decay, write, look, initial)


@pytest.mark.parametrize("edit", [lambda s: s, constants, write_in_place])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_graph_is_freed_without_the_garbage_collector(edit, backward, inputs, monkeypatch):
    decay, write, initial, _ = inputs
    memos = []

    def memo(*args):
        made = _Memo(*args)
        memos.append(weakref.ref(made))
        return made

    monkeypatch.setattr("hooked_ssm.ops.state_edit._Memo", memo)
    gc.disable()
    try:
        states = scan_with_edits(decay, write, edit, initial)
        if backward:
            states.sum().backward()
        assert [ref() is None for ref in memos] == [False]
        del states
        assert [ref() is None for ref in memos] == [True]
    finally:
        gc.enable()


def test_states_modified_after_the_hook_raise_in_backward(inputs):
    decay, write, initial, _ = inputs
    states = scan_with_edits(decay, write, constants, initial)
    states.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        states.sum().backward()
    seen = []
    states = scan_with_edits(decay, write, lambda s: constants(seen.append(s) or s), initial)
    seen[0].detach().mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        states.sum().backward()


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda s: s[:, 1:], ValueError, r"\(2, 7, 3, 4\), got \(2, 6, 3, 4\)"),
        (lambda s: s.float(), TypeError, r"torch.float64.*torch.float32"),
        (lambda s: (s,), TypeError, "tuple"),
        (lambda s: 3.0, TypeError, "float"),
        (lambda s: StateEdit(s, torch.zeros(5, dtype=torch.bool)), ValueError, r"\(2, 7, 3, 4\), got \(5,\)"),
        (
            lambda s: StateEdit(s, torch.zeros(1, *SHAPE, dtype=torch.bool)),
            ValueError,
            r"got \(1, 2, 7, 3, 4\)",
        ),
        (lambda s: StateEdit(s, torch.zeros(SHAPE)), TypeError, "mask"),
    ],
)
def test_what_cannot_stand_in_for_the_states_raises(edit, error, message, inputs):
    decay, write, initial, _ = inputs
    with pytest.raises(error, match=message):
        scan_with_edits(decay, write, edit, initial)
