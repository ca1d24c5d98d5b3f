"""Linear attention in Triton against the reference: outputs, every gradient, writes, states, edits."""

import pytest
import torch

pytest.importorskip("triton")

from hooked_ssm.ops import At, BackendError, linear_attention, use_backend
from hooked_ssm.ops.linear_attention import torch_linear_attention
from hooked_ssm.ops.triton.linear_attention import triton_linear_attention

from .memory_case import (
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
    wanted = results(torch_linear_attention, [None if x is None else x.double() for x in given], **edits)
    assert_close(results(triton_linear_attention, given, **kwargs), wanted, tolerance)


@pytest.mark.parametrize(
    ("pos", "initial", "decay"), [(1, False, False), (1, True, True), (7, False, True), (7, True, False)]
)
def test_outputs_and_every_gradient_are_the_references(pos, initial, decay):
    """Two heads share queries and keys."""
    compare(sample(pos, heads=2, decay=decay, initial=initial), chunk=4)


def test_states_larger_than_a_block_and_not_a_multiple_of_it():
    compare(sample(3, d_key=70, d_value=20))


def test_chunks_of_the_default_length():
    compare(sample(70))


def test_single_precision():
    compare(sample(37, d_key=8, d_value=8), 3e-6, torch.float32)


def test_half_precision_is_accumulated_in_single():
    inputs = sample(9)
    half = [x.bfloat16() for x in inputs[:3]] + [x.float() for x in inputs[3:]]
    o, last = triton_linear_attention(*half, **NO_EDITS | {"chunk": 4})
    wanted, wanted_last = torch_linear_attention(*(x.double() for x in half), **NO_EDITS)
    assert o.dtype == torch.bfloat16 and last.dtype == torch.float32
    assert_close([last], [wanted_last], 1e-6)
    # The interpreter cuts off where a GPU rounds.
    assert_close([o], [wanted], 2**-7)
    compare(inputs, 2**-7, torch.bfloat16, cubic=0, chunk=4)


def test_decays_of_zero_and_of_almost_zero():
    q, k, v, log_decay, initial = sample(7)
    log_decay[:, 2], log_decay[:, 3], log_decay[:, 5] = -torch.inf, -1e3, -60.0
    compare([q, k, v, log_decay, initial], chunk=4)


@pytest.mark.parametrize("pair", PAIRS, ids=names)
def test_edited_writes_and_states_are_those_of_the_reference(pair):
    compare(sample(6, heads=2), edit_write=pair[0], edit_state=pair[1], chunk=4)


def test_a_frozen_state():
    compare(sample(6), edit_state=frozen_after_an_edit, chunk=4)


@pytest.mark.parametrize("share", [0.5, 1.0, 0.0, -1.0])
def test_edited_decays_are_factors(share):
    compare(sample(6), 1e-11, edit_decay=lambda a: share * a, chunk=4)


def test_looking_changes_no_bit():
    inputs = [None if x is None else x.float() for x in sample(7)]
    o, last = triton_linear_attention(*inputs, **NO_EDITS | {"chunk": 4})
    edits = {"edit_decay": torch.clone, "edit_write": look, "edit_state": At((2, 5), lambda states: None)}
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            seen, seen_last = triton_linear_attention(*inputs, **edits, chunk=4)
        assert torch.equal(seen, o) and torch.equal(seen_last, last)


def test_writes_and_states_are_handed_out_at_the_positions_asked_for():
    inputs, writes, states = sample(7, batch=2), [], []
    edits = {"edit_write": At((2, 6), writes.append), "edit_state": At((0, 3, 6), states.append)}
    triton_linear_attention(*inputs, **NO_EDITS | edits | {"chunk": 4})
    edits = {"edit_write": writes.append, "edit_state": states.append}
    torch_linear_attention(*inputs, **NO_EDITS | edits)
    assert_close([writes[0], states[0]], [writes[1][:, [2, 6]], states[1][:, [0, 3, 6]]], 1e-14)


def test_the_back_end_runs_it_or_says_why_not():
    inputs = [None if x is None else x.float() for x in sample(5)]
    with use_backend("triton"):
        assert_close(linear_attention(*inputs), torch_linear_attention(*inputs, **NO_EDITS), 1e-5)
        with pytest.raises(BackendError, match="it has decays by head, not by channel"):
            linear_attention(*inputs[:3], inputs[0])
