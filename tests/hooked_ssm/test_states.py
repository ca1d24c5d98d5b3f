"""State tools: each is what a plain hook, or a plain loop, does."""

import pytest
import torch
from torch import Tensor

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.ops.state_edit import StateEdit
from hooked_ssm.states import (
    ablate_states,
    freeze_states,
    graft,
    knock_out_flow,
    replace_states,
    resume,
    set_states,
    state_after,
    states_at,
)

from .models import D_VOCAB, scattered

DOCS, LENGTH = 3, 8
CLOSE = {"rtol": 1e-10, "atol": 1e-10}
RECURRENT = [
    kind for kind in zoo.PRESETS if any("hook_ssm_state" in name for name in scattered(kind).hook_dict)
]


def recurrent_layer(model: HookedSSM) -> int:
    """The first layer with a recurrent state."""
    return next(i for i, block in enumerate(model.blocks) if hasattr(block.mixer, "hook_ssm_state"))


MATRIX = [kind for kind in zoo.PRESETS if kind != "hybrid"]


def documents(seed: int = 1, length: int = LENGTH) -> Tensor:
    return torch.randint(D_VOCAB, (DOCS, length), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def logits_of(model: HookedSSM, hooks, tokens: Tensor | None = None) -> Tensor:
    return model.run_with_hooks(documents() if tokens is None else tokens, fwd_hooks=hooks)


def states_of(model: HookedSSM, tokens: Tensor, layer: int) -> Tensor:
    name = f"blocks.{layer}.mixer.hook_ssm_state"
    with torch.no_grad():
        return model.run_with_cache(tokens, names_filter=[name])[1][name]


def plain(layer: int, positions: list[int], value: Tensor):
    """A hook that writes `value` [batch, position, ...] at positions, and says that they are set."""

    def hook(states, hook):
        mask = torch.zeros(states.shape[:2], dtype=torch.bool)
        mask[:, positions] = True
        states = states.clone()
        states[:, positions] = value
        return StateEdit(states, mask.reshape(*mask.shape, *[1] * (states.ndim - 2)))

    return [(f"blocks.{layer}.mixer.hook_ssm_state", hook)]


@pytest.mark.parametrize("kind", RECURRENT)
def test_states_are_set_replaced_ablated_and_frozen_as_a_plain_hook_would(kind):
    model, other = scattered(kind), documents(2)
    layer = recurrent_layer(model)
    cache = model.run_with_cache(other)[1]
    theirs = cache[f"blocks.{layer}.mixer.hook_ssm_state"]
    at = [2, 5]
    given = {"positions": at, "layers": [layer]}
    for hooks, value in [
        (set_states(model, theirs[:1, 3:4], **given), theirs[:1, 3:4]),
        (set_states(model, {layer: theirs}, positions=at), theirs[:, at]),
        (replace_states(model, cache, **given), theirs[:, at]),
        (replace_states(model, cache, source=4, **given), theirs[:, 4:5]),
        (ablate_states(model, **given), 0.0),
        (ablate_states(model, mean_of=cache, **given), theirs[:, at].mean(0)),
    ]:
        edited, wanted = logits_of(model, hooks), logits_of(model, plain(layer, at, value))
        torch.testing.assert_close(edited, wanted, **CLOSE)
        unedited = logits_of(model, [])
        torch.testing.assert_close(edited[:, :2], unedited[:, :2], **CLOSE)
        assert (edited[:, 2] - unedited[:, 2]).abs().max() > 1e-6


@pytest.mark.parametrize("kind", RECURRENT)
def test_freezing_right_after_an_edit_makes_it_one_of_the_read_alone(kind):
    model = scattered(kind)
    layer = recurrent_layer(model)
    edit = ablate_states(model, positions=[2], layers=[layer])
    freeze = freeze_states(model, positions=[3], layers=[layer])
    reads = []
    read = model.blocks[layer].mixer.matrix_hooks[1]
    look = (f"blocks.{layer}.mixer.{read}", lambda y, hook: reads.append(y.clone()))
    for hooks in ([], edit, [*edit, *freeze]):
        logits_of(model, [*hooks, look])
    unedited, carried, frozen = reads
    torch.testing.assert_close(frozen[:, 2], carried[:, 2], **CLOSE)
    torch.testing.assert_close(frozen[:, 3:], unedited[:, 3:], **CLOSE)
    assert (carried[:, 2] - unedited[:, 2]).abs().max() > 1e-9
    assert (carried[:, 3:] - unedited[:, 3:]).abs().max() > 1e-9


def test_freezing_to_a_cached_run_holds_against_edits_below():
    model = scattered("mamba")
    cache = model.run_with_cache(documents())[1]
    below = [("blocks.0.hook_mixer_out", lambda out, hook: out * 2)]
    seen = []
    look = [("blocks.1.mixer.hook_y", lambda y, hook: seen.append(y.clone()))]
    frozen = freeze_states(model, positions=range(LENGTH), layers=[1], cache=cache)
    logits_of(model, [*below, *frozen, *look])
    logits_of(model, [*below, *replace_states(model, cache, positions=range(LENGTH), layers=[1]), *look])
    torch.testing.assert_close(seen[0], seen[1], **CLOSE)


def test_positions_may_be_one_a_document_or_a_mask():
    model = scattered("mamba")
    each = torch.tensor([1, 4, 6])
    mask = torch.arange(LENGTH) == each[:, None]
    zeros = torch.zeros(DOCS, LENGTH, 16, 16, dtype=torch.float64)

    def hook(states, hook):
        return StateEdit(torch.where(mask[..., None, None], zeros, states), mask[..., None, None])

    wanted = logits_of(model, [("blocks.1.mixer.hook_ssm_state", hook)])
    for positions in (each, mask):
        edited = logits_of(model, ablate_states(model, positions=positions, layers=[1]))
        torch.testing.assert_close(edited, wanted, **CLOSE)


@pytest.mark.parametrize("kind", RECURRENT)
def test_states_at_positions_are_those_of_a_run_that_holds_all(kind):
    model, tokens = scattered(kind), documents()
    layers = [layer for layer in range(2) if hasattr(model.blocks[layer].mixer, "hook_ssm_state")]
    each = torch.tensor([5, 0, 3])
    found, found_each = states_at(model, tokens, [0, 3, 4]), states_at(model, tokens, each)
    assert list(found) == layers
    for layer in layers:
        states = states_of(model, tokens, layer)
        torch.testing.assert_close(found[layer], states[:, [0, 3, 4]], **CLOSE)
        torch.testing.assert_close(found_each[layer], states[torch.arange(DOCS), each], **CLOSE)
    last = states_at(model, tokens, LENGTH - 1, layers=layers[-1:])
    torch.testing.assert_close(last[layers[-1]][:, 0], states_of(model, tokens, layers[-1])[:, -1], **CLOSE)


def test_states_at_positions_are_all_that_is_held():
    model, seen = scattered("mamba"), []
    point = model.hook_dict["blocks.1.mixer.hook_ssm_state"]
    step = model.blocks[1].mixer.x_proj.register_forward_pre_hook(
        lambda module, args: seen.append((args[0].shape[1], point.attached))
    )
    try:
        states_at(model, documents(), [2, 5, 6])
    finally:
        step.remove()
    assert seen == [(2, False), (1, True), (2, False), (2, True)]  # nothing after the last one


@pytest.mark.parametrize("kind", ["attention", "mamba", "hybrid"])
def test_runs_go_on_from_a_state_and_from_one_put_together(kind):
    model, tokens, other = scattered(kind), documents(), documents(2)
    with torch.no_grad():
        here, there = state_after(model, tokens[:, :5]), state_after(model, other[:, :5])
        logits, after = resume(model, tokens[:, 5:], here)
        torch.testing.assert_close(logits, model(tokens)[:, 5:], **CLOSE)
        assert after.length == LENGTH
        mixed, _ = resume(model, tokens[:, 5:], graft(here, there, [1]))
        same, _ = resume(model, tokens[:, 5:], graft(here, there, []))
        last, _ = resume(model, tokens[:, 5:], here, logit_positions=torch.full((DOCS,), 2))
    torch.testing.assert_close(same, logits, **CLOSE)
    torch.testing.assert_close(last, logits[:, 2], **CLOSE)
    assert (mixed - logits).abs().max() > 1e-4
    gate = "blocks.0.hook_mixer_out"
    edited, _ = resume(model, tokens[:, 5:], here, fwd_hooks=[(gate, lambda out, hook: out * 0)])

    def later(out, hook):
        return torch.cat([out[:, :5], out[:, 5:] * 0], dim=1)

    torch.testing.assert_close(edited, logits_of(model, [(gate, later)])[:, 5:], **CLOSE)


SOURCE, DEST = [1, 2], [4, 6]


def lost(model: HookedSSM, layer: int, read_cache) -> Tensor:
    """The sum over sources of matrix times values, for all readers, one pair at a time."""
    mixer = model.blocks[layer].mixer
    activations = read_cache.of_mixer(layer)
    matrix = mixer.effective_attention(activations)
    values = activations[mixer.matrix_hooks[0]].flatten(2)
    width = values.shape[2] // matrix.shape[1]
    out = torch.zeros_like(values)
    for i in DEST:
        for j in SOURCE:
            weights = matrix[:, :, i, j].repeat_interleave(width, dim=1)
            out[:, i] += weights * values[:, j]
    return out


@pytest.mark.parametrize("kind", MATRIX)
def test_a_knock_out_through_the_matrix_removes_what_it_carries(kind):
    model, tokens = scattered(kind), documents()
    cache = model.run_with_cache(tokens)[1]
    name = f"blocks.0.mixer.{model.blocks[0].mixer.matrix_hooks[1]}"
    hooks = knock_out_flow(model, source=SOURCE, dest=DEST, layers=[0], through="matrix")
    edited = logits_of(model, hooks)

    def subtract(read, hook):
        return read - lost(model, 0, cache).reshape(read.shape)

    torch.testing.assert_close(edited, logits_of(model, [(name, subtract)]), **CLOSE)
    unedited = logits_of(model, [])
    torch.testing.assert_close(edited[:, :4], unedited[:, :4], **CLOSE)
    if kind != "base_conv_short":
        assert (edited - unedited).abs().max() > 1e-9


def test_a_knock_out_of_attention_leaves_the_rest_of_the_softmax():
    model = scattered("attention")
    edited = []
    look = [("blocks.0.attn.hook_pattern", lambda pattern, hook: edited.append(pattern.clone()))]
    logits_of(model, [*knock_out_flow(model, source=SOURCE, dest=DEST, layers=[0]), *look])
    pattern = model.run_with_cache(documents())[1]["blocks.0.attn.hook_pattern"].clone()
    pattern[:, :, [[4], [6]], SOURCE] = 0
    torch.testing.assert_close(edited[0], pattern / pattern.sum(-1, keepdim=True), **CLOSE)
    nothing = knock_out_flow(model, source=range(LENGTH), dest=[3])
    with torch.no_grad():
        assert logits_of(model, nothing).isfinite().all()


@pytest.mark.parametrize("kind", RECURRENT)
def test_a_knock_out_through_the_state_is_a_second_recurrence_without_those_writes(kind):
    """The states as read at the destinations, one position after the other."""
    model, tokens = scattered(kind), documents()
    layer = recurrent_layer(model)
    mixer, prefix = model.blocks[layer].mixer, f"blocks.{layer}.mixer."
    cache = model.run_with_cache(tokens)[1].of_mixer(layer)
    states, write = cache["hook_ssm_state"], cache["hook_ssm_write"]
    if write.ndim < states.ndim:
        write = torch.einsum("bphk,bphv->bphkv", cache["hook_k"], write)
    decay = cache["hook_ssm_decay"] if hasattr(mixer, "hook_ssm_decay") else torch.ones(1, LENGTH)
    if kind == "h3":
        states, write, decay = (torch.view_as_complex(x.contiguous()) for x in (states, write, decay))
        decay = decay[:, :, :, None, None]
    else:
        decay = decay.reshape(*decay.shape, *[1] * (states.ndim - decay.ndim))
    left, wanted = torch.zeros_like(states[:, 0]), states.clone()
    for t in range(LENGTH):
        left = decay[:, t] * left + (write[:, t] if t in SOURCE else 0)
        if t in DEST:
            wanted[:, t] -= left
    if kind == "h3":
        wanted = torch.view_as_real(wanted)
    seen = []
    hooks = knock_out_flow(model, source=SOURCE, dest=DEST, layers=[layer], through="state")
    read = f"{prefix}{mixer.matrix_hooks[1]}"
    look = [(read, lambda y, hook: seen.append(y.clone()))]
    edited = logits_of(model, [*hooks, *look])
    everywhere = torch.ones(1, 1, *[1] * (wanted.ndim - 2), dtype=torch.bool)
    held = [(f"{prefix}hook_ssm_state", lambda states, hook: StateEdit(wanted, everywhere))]
    torch.testing.assert_close(edited, logits_of(model, [*held, *look]), **CLOSE)
    torch.testing.assert_close(seen[0], seen[1], **CLOSE)
    assert (edited - logits_of(model, [])).abs().max() > 1e-9


@pytest.mark.parametrize("kind", ["mamba", "mamba2", "gla"])
def test_the_matrix_and_the_state_say_the_same_of_linear_recurrences(kind):
    if kind not in zoo.PRESETS:
        pytest.skip(f"no preset {kind}")
    model = scattered(kind)
    edited = [
        logits_of(model, knock_out_flow(model, source=SOURCE, dest=DEST, through=through))
        for through in ("matrix", "state")
    ]
    torch.testing.assert_close(*edited, **CLOSE)


def test_a_cache_of_an_edited_run_holds_what_was_set():
    model, tokens = scattered("mamba"), documents()
    name = "blocks.0.mixer.hook_ssm_state"
    with torch.no_grad(), model.hooks(fwd_hooks=ablate_states(model, positions=[3], layers=[0])):
        _, cache = model.run_with_cache(tokens)
    assert (cache[name][:, 3] == 0).all()
    assert torch.equal(cache[name][:, :3], states_of(model, tokens, 0)[:, :3])


def test_mistakes_are_refused():
    model, tokens = scattered("hybrid"), documents()  # Mamba, attention
    for positions in ([LENGTH], [-1], [], torch.tensor([0, 0, LENGTH])):
        with pytest.raises(ValueError, match=r"positions.*(from 0 to 7|in 0..7), got"):
            logits_of(model, ablate_states(model, positions=positions))
    with pytest.raises(ValueError, match=r"layers with a recurrent state are \[0\], got \[1\]"):
        ablate_states(model, positions=[0], layers=[1])
    with pytest.raises(ValueError, match="a model without any"):
        ablate_states(scattered("attention"), positions=[0])
    with pytest.raises(ValueError, match="must broadcast to that, got"):
        logits_of(model, set_states(model, torch.zeros(7), positions=[0]))
    with pytest.raises(ValueError, match="layer 1 has no recurrent state"):
        knock_out_flow(model, source=[0], dest=[1], through="state")
    with pytest.raises(ValueError, match="layer 0 has no attention scores"):
        knock_out_flow(model, source=[0], dest=[1], through="attention")
    with pytest.raises(ValueError, match=r"layers must lie in 0..1, got \[2\]"):
        knock_out_flow(model, source=[0], dest=[1], layers=[2])
    with pytest.raises(ValueError, match="as many positions"):
        states_at(model, tokens, torch.rand(DOCS, LENGTH) < torch.tensor([[0.0], [2.0], [2.0]]))
    with pytest.raises(ValueError, match="same length, got 2 and 3"):
        graft(state_after(model, tokens[:, :2]), state_after(model, tokens[:, :3]), [0])
    with pytest.raises(KeyError, match="clean cache does not hold"):
        replace_states(model, {}, positions=[0])
