"""Edits mean what they say: the mixer computes on with them, as a plain loop over positions does.

The loops, and the edits in them, are the `naive` of each case.
"""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from hooked_ssm.mixers import Mixer
from hooked_ssm.ops import StateEdit

from .case import Case, close, random_input
from .cases import CASES

every_mixer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
recurrent_mixers = pytest.mark.parametrize(
    "case",
    [case for case in CASES if "blocks.0.mixer.hook_ssm_state" in case.model().hook_dict],
    ids=lambda case: case.name,
)
LENGTH = 9
STATE = "blocks.0.mixer.hook_ssm_state"


def random_like(tensor: Tensor, seed: int) -> Tensor:
    return torch.randn(tensor.shape, dtype=tensor.dtype, generator=torch.Generator().manual_seed(seed))


@every_mixer
def test_every_edit_is_computed_with_as_in_the_equations(case):
    model, u = case.model(n_layers=1), random_input()
    model.set_use_attn_result(True)
    mixer = model.blocks[0].mixer
    unavailable = model.unavailable_hooks()
    names = [
        name for name in model.hook_dict if name.startswith("blocks.0.mixer.") and name not in unavailable
    ]
    assert len(names) >= 3
    at = 4

    def change(part: Tensor, shape: str) -> Tensor:
        change = random_like(part, 0)
        if "src" in shape:
            change[..., at + 1 :] = 0  # a row of a causal matrix
        return change

    def in_the_model(tensor: Tensor, hook) -> Tensor:
        edited = tensor.clone()
        part = edited.select(hook.pos_dim, at)
        part += change(part, hook.shape)
        return edited

    def in_the_loop(hook, quantity: str, t: int, value: Tensor) -> Tensor:
        edited = hook.name.endswith(f".{quantity}") and t == at
        return value + change(value, hook.shape) if edited else value

    for name in names:
        with model.hooks(fwd_hooks=[(name, in_the_model)]):
            got = mixer(u)
        wanted = case.naive(mixer, u, partial(in_the_loop, model.hook_dict[name]))["out"]
        assert close(got, wanted, case.tolerance), name
        assert not torch.equal(got, mixer(u)), name


def edits(case: Case) -> tuple[Mixer, Tensor, Tensor, Callable[..., Tensor]]:
    """A mixer, its input, values that states may be set to, and the mixer run with a hook on its states."""
    model, u = case.model(n_layers=1), random_input().requires_grad_()
    mixer = model.blocks[0].mixer
    states = case.naive(mixer, u)["hook_ssm_state"]
    values = random_like(states, 5).requires_grad_()

    def run(hook: Callable[..., object]) -> Tensor:
        with model.hooks(fwd_hooks=[(STATE, hook)]):
            return mixer(u)

    return mixer, u, values, run


def set_at(*positions: int) -> dict[int, slice]:
    return {t: slice(None) for t in positions}


@recurrent_mixers
@pytest.mark.parametrize(
    "where",
    [
        set_at(4),
        set_at(0),
        set_at(8),
        set_at(2, 6),
        set_at(3, 4),
        set_at(*range(LENGTH)),
        {4: slice(0, 1), 5: slice(1, 2)},
    ],
    ids=["one", "first", "last", "two", "neighbours", "all", "parts"],
)
def test_a_state_that_is_set_is_carried_on(case, where):
    """Values, and gradients in the input, in the parameters and in what the states were set to.

    Parts are of the state's first axis: heads or channels.
    """
    mixer, u, values, run = edits(case)

    def in_the_model(states: Tensor, hook) -> Tensor:
        states = states.clone()
        for t, part in where.items():
            states[:, t, part] = values[:, t, part]
        return states

    def in_the_loop(quantity: str, t: int, value: Tensor) -> Tensor:
        if quantity != "hook_ssm_state" or t not in where:
            return value
        value = value.clone()
        value[:, where[t]] = values[:, t, where[t]]
        return value

    got, wanted = run(in_the_model), case.naive(mixer, u, in_the_loop)["out"]
    assert close(got, wanted, case.tolerance)
    weight = random_like(got, 6)
    inputs = [u, values, *mixer.parameters()]
    ours = torch.autograd.grad((got * weight).sum(), inputs, materialize_grads=True)
    theirs = torch.autograd.grad((wanted * weight).sum(), inputs, materialize_grads=True)
    for grad, naive_grad in zip(ours, theirs, strict=True):
        assert close(grad, naive_grad, case.tolerance)


@recurrent_mixers
def test_states_can_be_set_in_place(case):
    _, _, values, run = edits(case)

    def in_place(states: Tensor, hook) -> None:
        states[:, 4] = values[:, 4]

    def returned(states: Tensor, hook) -> Tensor:
        return torch.cat([states[:, :4], values[:, 4:5], states[:, 5:]], dim=1)

    with torch.no_grad():
        assert torch.equal(run(in_place), run(returned))


@recurrent_mixers
def test_a_freeze_holds_a_state_that_an_earlier_edit_would_move(case):
    mixer, u, values, run = edits(case)
    raw = case.naive(mixer, u)["hook_ssm_state"].detach()

    def in_the_model(states: Tensor, hook) -> StateEdit:
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        mask[:, 6] = True
        states = states.clone()
        states[:, 3] = values[:, 3]
        return StateEdit(states, mask.reshape(*mask.shape, *[1] * (states.ndim - 2)))

    def in_the_loop(quantity: str, t: int, value: Tensor) -> Tensor:
        if quantity == "hook_ssm_state" and t in (3, 6):
            return values[:, 3] if t == 3 else raw[:, 6]
        return value

    got = run(in_the_model)
    assert close(got, case.naive(mixer, u, in_the_loop)["out"], case.tolerance)
    plain = mixer(u)
    # After the frozen position, only a token's own convolution could differ, and that was not edited.
    assert close(got[:, 7:], plain[:, 7:], case.tolerance)
    assert not close(got[:, 3:6], plain[:, 3:6], 1e-3)


@recurrent_mixers
@pytest.mark.parametrize("pieces", [[5, 4], [1] * LENGTH, [3, 6]], ids=str)
def test_a_state_set_in_one_piece_is_carried_into_the_next(case, pieces):
    model, u = case.model(n_layers=1), random_input()
    mixer = model.blocks[0].mixer
    values = random_like(case.naive(mixer, u)["hook_ssm_state"], 5)
    begun = 0

    def in_the_model(states: Tensor, hook) -> Tensor:
        states = states.clone()
        if begun <= 4 < begun + states.shape[1]:
            states[:, 4 - begun] = values[:, 4]
        return states

    def in_the_loop(quantity: str, t: int, value: Tensor) -> Tensor:
        return values[:, 4] if quantity == "hook_ssm_state" and t == 4 else value

    state, outputs = None, []
    with model.hooks(fwd_hooks=[(STATE, in_the_model)]):
        for piece in u.split(pieces, dim=1):
            out, state = mixer.extend(piece, state)
            outputs.append(out)
            begun += piece.shape[1]
    assert close(torch.cat(outputs, dim=1), case.naive(mixer, u, in_the_loop)["out"], case.tolerance)


@recurrent_mixers
def test_computed_states_are_the_hooked_ones(case):
    model = case.model(n_layers=1)
    tokens = torch.arange(LENGTH)[None].expand(2, -1)
    _, cache = model.run_with_cache(tokens)
    assert close(cache.compute_ssm_state(layer=0), cache[STATE], case.tolerance)
    assert close(cache.compute_ssm_state(layer=0, time_step=5), cache[STATE][:, 5], case.tolerance)
