"""The delta rule in Triton against the reference: outputs, every gradient, writes, states, edits."""

import pytest
import torch

pytest.importorskip("triton")

from hooked_ssm.ops import At, BackendError, delta_rule, use_backend
from hooked_ssm.ops.delta_rule import torch_delta_rule
from hooked_ssm.ops.triton.delta_rule import triton_delta_rule

from .memory_case import (
    DEVICE,
    NO_EDITS,
    PAIRS,
    assert_close,
    frozen_after_an_edit,
    look,
    names,
    results,
    sample,
)


def compare(inputs, tolerance=1e-12, dtype=torch.float64, **kwargs):
    given = [None if x is None else x.to(dtype) for x in inputs]
    edits = {name: value for name, value in kwargs.items() if name != "chunk"}
    wanted = results(torch_delta_rule, [None if x is None else x.double() for x in given], **edits)
    assert_close(results(triton_delta_rule, given, **kwargs), wanted, tolerance)


@pytest.mark.parametrize(
    ("pos", "initial", "decay"), [(1, False, False), (1, True, True), (7, False, True), (7, True, False)]
)
def test_outputs_and_every_gradient_are_the_references(pos, initial, decay):
    compare(sample(pos, heads=2, groups=2, beta=True, decay=decay, initial=initial), chunk=4)


def test_states_larger_than_a_block_and_not_a_multiple_of_it():
    compare(sample(3, d_key=20, d_value=70, beta=True))


def test_chunks_of_the_default_length():
    compare(sample(37, beta=True))


def test_single_precision():
    compare(sample(37, beta=True, d_key=8, d_value=8), 3e-6, torch.float32)


def test_half_precision_is_accumulated_in_single():
    inputs = sample(9, beta=True)
    half = [x.bfloat16() for x in inputs[:4]] + [x.float() for x in inputs[4:]]
    o, last = triton_delta_rule(*half, **NO_EDITS | {"chunk": 4})
    wanted, wanted_last = torch_delta_rule(*(x.double() for x in half), **NO_EDITS)
    assert o.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert_close([last], [wanted_last], 1e-6)
    # The interpreter cuts off where a GPU rounds.
    assert_close([o], [wanted], 2**-7)
    compare(inputs, 2**-7, torch.bfloat16, cubic=0, chunk=4)


def test_a_key_that_comes_again_and_again_costs_no_digits():
    """Powers of the system's matrix then reach 1e17."""
    q, k, v, beta, *_ = sample(64, beta=True)
    inputs = [q, k[:, :1].expand_as(k), v, torch.ones_like(beta), None, None]
    compare(inputs, 1e-12, chunk=64)


def test_decays_of_zero_and_of_almost_zero():
    q, k, v, beta, log_decay, initial = sample(7, beta=True)
    log_decay[:, 2], log_decay[:, 3], log_decay[:, 5] = -torch.inf, -1e3, -60.0
    compare([q, k, v, beta, log_decay, initial], chunk=4)


@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_edited_writes_and_states_are_those_of_the_reference(pair):
    compare(sample(6, beta=True), edit_write=pair[0], edit_state=pair[1], chunk=4)


def test_a_frozen_write_and_a_frozen_state():
    compare(sample(6, beta=True), edit_write=frozen_after_an_edit, chunk=4)
    compare(sample(6, beta=True), edit_state=frozen_after_an_edit, chunk=4)


@pytest.mark.parametrize("share", [0.5, 1.0, 0.0, -1.0])
def test_edited_decays_are_factors(share):
    compare(sample(6, beta=True), 1e-11, edit_decay=lambda a: share * a, chunk=4)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # numpy's, of 0 times infinity
def test_infinity_ends_where_a_state_is_set():
    inputs = sample(8, beta=True)
    inputs[2][:, 1] = torch.inf

    def edit(states):
        states = states.clone()
        states[:, 5, ..., :2] = 0.5
        return states

    edits = NO_EDITS | {"edit_state": edit}
    o, last = triton_delta_rule(*inputs, **edits | {"chunk": 4})
    wanted, wanted_last = torch_delta_rule(*inputs, **edits)
    assert o[:, 5:, ..., :2].isfinite().all() and not o[:, 1:, ..., 2].isfinite().any()
    assert_close([o[:, 5:, ..., :2], last[..., :2]], [wanted[:, 5:, ..., :2], wanted_last[..., :2]], 1e-12)


def test_looking_changes_no_bit():
    inputs = [None if x is None else x.float() for x in sample(7, beta=True)]
    o, last = triton_delta_rule(*inputs, **NO_EDITS | {"chunk": 4})
    edits = {"edit_decay": torch.clone, "edit_write": look, "edit_state": At((2, 5), lambda states: None)}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            seen, seen_last = triton_delta_rule(*inputs, **edits, chunk=4)
        assert torch.equal(seen, o) and torch.equal(seen_last, last)


def test_states_are_handed_out_at_the_positions_asked_for():
    inputs, handed = sample(7, batch=2, beta=True), []
    triton_delta_rule(*inputs, **NO_EDITS | {"edit_state": At((0, 3, 6), handed.append), "chunk": 4})
    torch_delta_rule(*inputs, **NO_EDITS | {"edit_state": handed.append})
    assert handed[0].shape == (2, 3, 1, 2, 3)
    assert_close([handed[0]], [handed[1][:, [0, 3, 6]]], 1e-14)


def test_the_back_end_runs_it_or_says_why_not():
    inputs = [None if x is None else x.float() for x in sample(5, beta=True)]
    with use_backend("triton"):
        assert_close(delta_rule(*inputs), torch_delta_rule(*inputs, **NO_EDITS), 1e-5)
        wide = torch.zeros(1, 2, 1, 257, device=DEVICE)
        with pytest.raises(BackendError, match=r"d_key up to 256, got 257.*'torch'"):
            delta_rule(wide, wide, wide, wide[..., 0])
