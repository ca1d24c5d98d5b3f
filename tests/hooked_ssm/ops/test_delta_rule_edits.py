"""Edited decays, writes and states of the delta rule mean what a plain loop over positions does with them."""

import gc
import weakref
from itertools import product

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from hooked_ssm.ops import StateEdit, delta_rule
from hooked_ssm.ops.delta_rule_path import _Path

from .naive_delta_rule import edited_loop, loop, sample

pytestmark = pytest.mark.usefixtures("backend")

NAMES = ["o", "last state", "q", "k", "v", "beta", "log_decay", "initial", "theta"]
SHAPE = 2, 7, 2, 3, 4  # batch, pos, head, d_key, d_value
theta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

# Edits of a trajectory [batch, pos, head, ...].


def constants(x):
    x = x.clone()
    x[:, 2] = 0.3
    return x


def first_and_last(x):
    x = x.clone()
    x[:, 0] = x[:, -1] = -1.0
    return x


def some_entries(x):
    x = x.clone()
    x[:, 1, 0, 0] = 0.3
    x[0, 4, 1] = -0.2
    return x


def doubled(x):
    return torch.cat([x[:, :3], 2 * x[:, 3:4], x[:, 4:]], 1)


def all_doubled(x):
    return 2 * x


def from_elsewhere(x):
    """Set to functions of the raw trajectory at other positions, before and after, and of a parameter."""
    new = x.clone()
    new[:, 3] = theta * x[:, 1] + x[:, 5].sin()
    return new


def parameter_added(x):
    new = x.clone()
    new[:, 2] = x[:, 2] + theta
    return new


def frozen_after_an_edit(x):
    new, mask = x.clone(), torch.zeros_like(x, dtype=torch.bool)
    new[:, 1] = 0.0
    mask[:, 4] = True
    return StateEdit(new, mask)


def everything_frozen(x):
    return StateEdit(x, torch.ones(1, dtype=torch.bool))


def constants_equal_to_what_was_there(x):
    """As when patching from a run that differs only later: nothing is set before position 3."""
    new = x.detach().clone()
    new[:, 3:5] += 1
    return torch.cat([new[:, :5], x[:, 5:]], 1)


def partly_detached(x):
    new = x.detach().clone()
    new[:, 3] = 2 * x[:, 3]
    return new


EDITS = [
    None,
    torch.clone,
    constants,
    first_and_last,
    some_entries,
    doubled,
    all_doubled,
    from_elsewhere,
    parameter_added,
    frozen_after_an_edit,
    everything_frozen,
    constants_equal_to_what_was_there,
    partly_detached,
]


def name_of(edit):
    return "none" if edit is None else edit.__name__


def erased_and_turned(a):
    a = a.clone()
    a[:, 2], a[:, 3, 1], a[:, 5] = 0.0, -0.5, 1.5 * a[:, 5]
    return a


def outcome(run, wrt):
    """o, the last state, and the gradients of a loss on both."""
    o, last = run()
    g = torch.Generator().manual_seed(1)
    read, read_last = (torch.randn(x.shape, generator=g, dtype=x.dtype) for x in (o, last))
    loss = (o * read).sum() + o.pow(3).sum() + (last * read_last).sum()
    return [o, last, *torch.autograd.grad(loss, wrt, materialize_grads=True)]


def assert_close(got, wanted, names=NAMES, tolerance=1e-12):
    for name, one, other in zip(names, got, wanted, strict=True):
        assert one.shape == other.shape, name
        assert (one - other).abs().max() <= tolerance * max(1.0, other.abs().max()), name


def differentiable(inputs):
    """The inputs that are there, and the parameter of some edits; with their names."""
    there = [(name, x) for name, x in zip(NAMES[2:], [*inputs, theta], strict=True) if x is not None]
    return ["o", "last state", *(name for name, _ in there)], [x for _, x in there]


@pytest.mark.parametrize("edit_state", EDITS, ids=name_of)
@pytest.mark.parametrize("edit_write", EDITS, ids=name_of)
def test_results_and_gradients_are_those_of_the_loop(edit_write, edit_state):
    """With and without decays (edited ones, where neither writes nor states are left alone) and an initial
    state."""
    for decay, initial in product((False, True), repeat=2):
        inputs = sample(*SHAPE, decay=decay, initial=initial)
        names, wrt = differentiable(inputs)
        edits = {"edit_write": edit_write, "edit_state": edit_state}
        if decay and edit_write is not None and edit_state is not None:
            edits["edit_decay"] = erased_and_turned
        got = outcome(lambda inputs=inputs, edits=edits: delta_rule(*inputs, **edits), wrt)
        wanted = outcome(lambda inputs=inputs, edits=edits: edited_loop(inputs, **edits), wrt)
        assert_close(got, wanted, names)


def test_edited_decays_are_factors_of_any_sign():
    inputs = sample(*SHAPE)
    names, wrt = differentiable(inputs)

    def in_place(a):
        a.copy_(erased_and_turned(a.detach()))

    for edit in (erased_and_turned, lambda a: torch.zeros_like(a), lambda a: theta * a, lambda a: -a):
        got = outcome(lambda edit=edit: delta_rule(*inputs, edit_decay=edit), wrt)
        assert_close(got, outcome(lambda edit=edit: edited_loop(inputs, edit), wrt), names)
    with torch.no_grad():
        for one, other in zip(
            delta_rule(*inputs, edit_decay=in_place), delta_rule(*inputs, edit_decay=erased_and_turned)
        ):
            assert torch.equal(one, other)
    delta_rule(*inputs, edit_decay=in_place)[0].sum().backward()  # exp's own result was not written to


@pytest.mark.parametrize("edit_state", EDITS, ids=name_of)
@pytest.mark.parametrize("edit_write", EDITS, ids=name_of)
def test_what_hooks_return_receives_the_total_derivative(edit_write, edit_state):
    """The derivative by what is added to a write or state, set or not, and carried on."""
    if edit_write is edit_state is None:
        return
    batch, pos, heads, d_key, d_value = SHAPE
    inputs = sample(*SHAPE)
    nudges = [
        None if edit is None else torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        for edit, shape in (
            (edit_write, (batch, pos, heads, d_value)),
            (edit_state, (batch, pos, heads, d_key, d_value)),
        )
    ]
    wrt = [nudge for nudge in nudges if nudge is not None]
    wanted = outcome(lambda: edited_loop(inputs, None, edit_write, edit_state, *nudges), wrt)

    def keeping(edit, kept):
        def keep(x):
            returned = edit(x)
            kept.append(returned.states if isinstance(returned, StateEdit) else returned)
            return returned

        return None if edit is None else keep

    def total():
        kept = []
        o, last = delta_rule(
            *inputs, edit_write=keeping(edit_write, kept), edit_state=keeping(edit_state, kept)
        )
        return outcome(lambda: (o, last), kept)

    assert_close(total(), wanted, ["o", "last state", *(["hook"] * len(wrt))])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(data=st.data())
def test_any_combination_of_edits_is_that_of_the_loop(data):
    shape = [data.draw(st.integers(1, most), label) for label, most in
             (("batch", 2), ("pos", 6), ("head", 2), ("d_key", 3), ("d_value", 3))]  # fmt: skip
    decay, initial = data.draw(st.booleans(), "decay"), data.draw(st.booleans(), "initial")
    inputs = sample(*shape, decay=decay, initial=initial, seed=data.draw(st.integers(0, 99), "seed"))
    g = torch.Generator().manual_seed(data.draw(st.integers(0, 99), "edits"))

    def random_edit(kind):
        """An edit that sets some entries: to numbers, or to functions of the trajectory."""
        share = data.draw(st.sampled_from([0.1, 0.5, 1.0]), f"{kind}: share of entries")
        how = data.draw(st.sampled_from(["where", "in place", "masked", "detached", "turned"]), kind)
        state = g.get_state()

        def edit(x):
            g.set_state(state)
            numbers = torch.randn(x.shape, generator=g, dtype=x.dtype)
            chosen = torch.rand(x.shape, generator=g) < share
            if how == "where":
                return torch.where(chosen, numbers, x)
            if how == "in place":
                x.masked_fill_(chosen, 0.25)
                return x
            if how == "masked":
                return StateEdit(x, chosen)
            if how == "detached":
                return torch.where(chosen, theta * numbers, x.detach())
            return torch.where(chosen, x.flip(1) * numbers, x)

        return edit

    edits = {}
    for kind in ("edit_decay", "edit_write", "edit_state"):
        if data.draw(st.booleans(), kind) and (decay or kind != "edit_decay"):
            if kind == "edit_decay":
                factor = data.draw(st.sampled_from([0.0, -1.0, 0.5]))
                edits[kind] = lambda a, factor=factor: factor * a
            else:
                edits[kind] = random_edit(kind)
    names, wrt = differentiable(inputs)
    got = outcome(lambda: delta_rule(*inputs, **edits), wrt)
    assert_close(got, outcome(lambda: edited_loop(inputs, **edits), wrt), names, 1e-11)


def test_a_state_set_in_one_piece_is_carried_into_the_next():
    q, k, v, beta, log_decay, initial = inputs = sample(*SHAPE)
    wanted, wanted_last = edited_loop(inputs, edit_state=constants)
    first, state = delta_rule(*(x[:, :4] for x in inputs[:5]), initial, edit_state=constants)
    second, last = delta_rule(*(x[:, 4:] for x in inputs[:5]), state)
    assert_close([torch.cat([first, second], 1), last], [wanted, wanted_last], NAMES[:2])


@pytest.mark.parametrize("kind", ["edit_write", "edit_state"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_an_edit_in_place_is_an_edit(kind, mode):
    inputs = sample(*SHAPE)

    def in_place(x):
        x[:, 2] = 0.3

    with mode():
        wanted = delta_rule(*inputs, **{kind: constants})
        for edit in (in_place, lambda x: in_place(x) or x):
            for one, other in zip(delta_rule(*inputs, **{kind: edit}), wanted, strict=True):
                assert torch.equal(one, other)
    if mode is torch.enable_grad:
        names, wrt = differentiable(inputs)
        got = outcome(lambda: delta_rule(*inputs, **{kind: in_place}), wrt)
        assert_close(got, outcome(lambda: edited_loop(inputs, **{kind: constants}), wrt), names)


@pytest.mark.parametrize("kind", ["write", "state"])
@pytest.mark.parametrize("also", [None, constants], ids=name_of)
def test_a_detached_return_stops_the_gradient(kind, also):
    """As in a loop that detaches every write, or every state, as it is computed."""
    inputs = sample(*SHAPE)
    names, wrt = differentiable(inputs)

    def detached(x):
        return (x if also is None else also(x)).detach()

    def settle(t, value):
        return (value if also is None or t != 2 else torch.full_like(value, 0.3)).detach()

    def naive():
        q, k, v, beta, log_decay, initial = inputs
        return loop(q, k, v, beta, log_decay.exp(), initial, **{kind: settle})[:2]

    got = outcome(lambda: delta_rule(*inputs, **{f"edit_{kind}": detached}), wrt)
    assert_close(got, outcome(naive, wrt), names)
    assert got[names.index("v")].abs().max() == 0 and got[names.index("beta")].abs().max() == 0


def test_a_backward_hook_of_a_module_sees_the_total_derivative():
    inputs = sample(*SHAPE)
    names, wrt = differentiable(inputs)
    nudge = torch.zeros(*SHAPE[:3], SHAPE[4], dtype=torch.float64, requires_grad=True)
    *_, wanted = outcome(lambda: edited_loop(inputs, None, torch.clone, None, nudge), [nudge])
    hook, grads = nn.Identity(), []
    hook.register_full_backward_hook(lambda module, grad_in, grad_out: grads.append(grad_out[0]))
    got = outcome(lambda: delta_rule(*inputs, edit_write=hook), wrt)
    assert_close(grads, [wanted], ["write"])
    assert_close(got, outcome(lambda: edited_loop(inputs), wrt), names)


def test_an_edit_never_moves_what_came_before_it_and_what_it_erases_is_gone():
    inputs = sample(2, 12, 2, 8, 4, dtype=torch.float32)
    o, _ = delta_rule(*inputs)

    def erase(x):
        x = x.clone()
        x[:, 5] = 0.0
        return x

    got, _ = delta_rule(*inputs, edit_state=erase)
    assert (
        torch.equal(got[:, :5], o[:, :5]) and (got[:, 5] == 0).all() and not torch.equal(got[:, 6], o[:, 6])
    )
    got, last = delta_rule(*inputs, edit_state=torch.zeros_like)
    assert (got == 0).all() and (last == 0).all()


def test_handed_tensors_are_dense_and_fresh():
    inputs = sample(*SHAPE)
    seen = []

    def look(x):
        assert x.is_contiguous() and not x._is_view()
        seen.append(x)

    o, last = delta_rule(*inputs, edit_decay=look, edit_write=look, edit_state=look)
    assert [tuple(x.shape) for x in seen] == [SHAPE[:3], (*SHAPE[:3], SHAPE[4]), SHAPE]
    memories = [x.untyped_storage().data_ptr() for x in (*seen, o, last, *inputs)]
    assert len(set(memories)) == len(memories)


@pytest.mark.parametrize("kind", ["edit_write", "edit_state"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_the_graph_is_freed_without_the_garbage_collector(kind, backward):
    inputs = sample(*SHAPE)
    gc.disable()
    try:
        o, _ = delta_rule(*inputs, **{kind: constants})
        node = o.grad_fn
        while not isinstance(node, _Path._backward_cls):
            node = node.next_functions[1][0]
        path = weakref.ref(node)
        del node
        if backward:
            o.sum().backward()
        assert path() is not None
        del o, _
        assert path() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", ["edit_write", "edit_state"])
@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda x: x[:, 1:], ValueError, r"must return shape \(2, 7, .*got \(2, 6, "),
        (lambda x: x.float(), TypeError, r"torch.float64.*torch.float32"),
        (lambda x: (x,), TypeError, "tuple"),
        (lambda x: StateEdit(x, torch.zeros(5, dtype=torch.bool)), ValueError, r"got \(5,\)"),
        (lambda x: StateEdit(x, torch.zeros_like(x)), TypeError, "mask"),
    ],
)
def test_what_cannot_stand_in_for_a_trajectory_raises(kind, edit, error, message):
    with pytest.raises(error, match=message):
        delta_rule(*sample(*SHAPE), **{kind: edit})


def test_what_cannot_stand_in_for_the_decays_raises():
    with pytest.raises(ValueError, match=r"decays must return shape \(2, 7, 2\), got \(2, 6, 2\)"):
        delta_rule(*sample(*SHAPE), edit_decay=lambda a: a[:, 1:])
