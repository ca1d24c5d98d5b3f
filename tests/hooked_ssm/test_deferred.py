"""Activations that are computed when they are read: the same bits as a hook sees, or a clear refusal."""

import gc
import pickle
import weakref

import pytest
import torch

from hooked_ssm import HookedSSM, ops, zoo
from hooked_ssm.deferred import Deferred, DeferredDict

TOKENS = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(0))
STATE = "blocks.0.mixer.hook_ssm_state"


def model_of(preset="mamba", dtype=torch.float64):
    return HookedSSM(zoo.PRESETS[preset](d_model=8, n_layers=2, d_vocab=7, dtype=dtype, seed=0))


def waiting(cache):
    return {name for name, value in dict.items(cache.cache_dict) if isinstance(value, Deferred)}


def seen_by_hooks(model, tokens=TOKENS):
    seen = {}

    def see(tensor, hook):
        seen[hook.name] = tensor.detach().clone()

    model.run_with_hooks(tokens, fwd_hooks=[(lambda name: True, see)])
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("preset", zoo.PRESETS)
def test_they_are_what_a_hook_sees_to_the_last_bit(preset, dtype):
    model = model_of(preset, dtype)
    wanted = seen_by_hooks(model)
    logits, cache = model.run_with_cache(TOKENS)
    assert torch.equal(logits, model(TOKENS))
    recurrent = hasattr(model.blocks[1].mixer, "hook_ssm_state")
    assert recurrent <= ("blocks.1.mixer.hook_ssm_state" in waiting(cache))
    assert set(cache.keys()) == set(wanted)
    for name in cache:
        assert torch.equal(cache[name], wanted[name]), name
        assert cache[name] is cache[name] and not cache[name].requires_grad
    assert not waiting(cache)


def test_nothing_is_computed_for_what_nobody_reads(monkeypatch):
    model = model_of()
    _, cache = model.run_with_cache(TOKENS)
    monkeypatch.setattr(Deferred, "__call__", lambda self: pytest.fail("computed"))
    names = [f"blocks.0.mixer.hook_ssm_{quantity}" for quantity in ("decay", "write", "state")]
    assert set(names) < waiting(cache)
    assert len(cache) == len(list(cache)) and STATE in cache and cache["embed"].shape == (2, 6, 8)


def test_writing_to_what_they_are_computed_from_is_refused_when_they_are_read():
    model = model_of()
    _, cache = model.run_with_cache(TOKENS)
    cache["blocks.0.mixer.hook_x"].zero_()
    with pytest.raises(RuntimeError, match=f"'{STATE}' is computed when .* has been written to in place"):
        cache[STATE]
    cache["blocks.1.mixer.hook_ssm_state"]
    _, cache = model.run_with_cache(TOKENS)
    first = cache[STATE]
    cache["blocks.0.mixer.hook_x"].zero_()
    assert cache[STATE] is first


def test_training_goes_on_without_changing_them():
    model = model_of("hyena"), model_of("mamba"), model_of("h3")
    for each in model:
        wanted = seen_by_hooks(each)
        _, cache = each.run_with_cache(TOKENS)
        with torch.no_grad():
            for p in each.parameters():
                p.mul_(0.5)
        for name in cache:
            assert torch.equal(cache[name], wanted[name]), name


def test_an_edit_beside_the_cache_is_in_it():
    model = model_of()

    def halve(states, hook):
        return 0.5 * states

    with model.hooks(fwd_hooks=[(STATE, halve)]):
        edited, cache = model.run_with_cache(TOKENS)
    assert STATE not in waiting(cache)
    torch.testing.assert_close(cache[STATE], 0.5 * model.run_with_cache(TOKENS)[1][STATE])
    assert not torch.allclose(edited, model(TOKENS))
    x = "blocks.0.mixer.hook_x"
    with model.hooks(fwd_hooks=[(x, halve)]):
        later = model.run_with_cache(TOKENS)[1][STATE]
        now = seen_by_hooks(model)[STATE]
    assert torch.equal(later, now)


def test_where_it_cannot_wait_it_does_not():
    model = model_of()
    wanted = model.run_with_cache(TOKENS)[1][STATE]
    with torch.inference_mode():
        _, cache = model.run_with_cache(TOKENS)
    assert not waiting(cache)
    torch.testing.assert_close(cache[STATE], wanted)
    with model.hook_dict[STATE].only([2]):
        _, cache = model.run_with_cache(TOKENS)
    torch.testing.assert_close(cache[STATE], wanted[:, [2]])
    single = model_of(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        seen = seen_by_hooks(single)[STATE]
        _, cache = single.run_with_cache(TOKENS)
    assert not waiting(cache) and torch.equal(cache[STATE], seen)
    model.set_use_attn_result(True)
    cache, fwd, bwd = model.get_caching_hooks(STATE, incl_bwd=True)
    with model.hooks(fwd_hooks=fwd, bwd_hooks=bwd):
        model(TOKENS).sum().backward()
    assert isinstance(dict.get(cache, STATE), torch.Tensor) and cache[f"{STATE}_grad"].shape == wanted.shape


def test_the_back_end_is_the_one_of_the_run():
    model = model_of(dtype=torch.float32)
    with ops.use_backend("torch"):
        wanted = seen_by_hooks(model)[STATE]
        _, cache = model.run_with_cache(TOKENS)
    assert STATE in waiting(cache) and torch.equal(cache[STATE], wanted)


def test_a_dictionary_of_ones_own_holds_tensors():
    model, mine = model_of(), {}
    model.add_caching_hooks(STATE, cache=mine)
    model(TOKENS)
    model.reset_hooks()
    assert isinstance(mine[STATE], torch.Tensor)
    _, plain = model.run_with_cache(TOKENS, return_cache_object=False)
    assert type(plain) is dict and torch.equal(plain[STATE], mine[STATE])


def test_cut_and_moved_as_the_others():
    model = model_of()
    whole = model.run_with_cache(TOKENS[:1])[1][STATE]
    options = {"pos_slice": (1, 3), "remove_batch_dim": True, "device": "cpu", "names_filter": STATE}
    _, cache = model.run_with_cache(TOKENS[:1], **options)
    assert torch.equal(cache[STATE], whole[0, 1:3])


@pytest.mark.parametrize("preset", zoo.PRESETS)
def test_a_cache_goes_when_nothing_refers_to_it(preset):
    """Without the garbage collector, which may be long in coming: the memory is wanted for the next one."""
    model = model_of(preset)
    gc.collect()
    gc.disable()
    try:
        for read in (False, True):
            _, cache = model.run_with_cache(TOKENS)
            if read:
                list(cache.values())
            gone = weakref.ref(cache["embed"])
            del cache
            assert gone() is None
    finally:
        gc.enable()


def three(x):
    return DeferredDict(a=Deferred(torch.neg, x), b=Deferred(torch.exp, x), c=x)


def test_as_a_dictionary_it_is_one_of_tensors():
    x = torch.ones(2)
    a, b = -x, x.exp()

    def holds(d, /, **wanted):
        assert list(d) == list(wanted)
        for name, tensor in dict.items(dict(d)):
            assert torch.equal(tensor, wanted[name])

    for d in (dict(three(x)), {**three(x)}, three(x).copy(), pickle.loads(pickle.dumps(three(x)))):
        assert type(d) is dict
        holds(d, a=a, b=b, c=x)
    holds(dict(three(x).items()), a=a, b=b, c=x)
    holds(three(x) | {"d": a}, a=a, b=b, c=x, d=a)
    holds({"d": a} | three(x), d=a, a=a, b=b, c=x)
    for tensor, wanted in zip(three(x).values(), (a, b, x), strict=True):
        assert torch.equal(tensor, wanted)
    assert torch.equal(three(x).get("a"), a) and three(x).get("d") is None
    assert torch.equal(three(x).setdefault("b", x), b) and torch.equal(three(x).pop("a"), a)
    assert three(x).pop("d", None) is None and three(x).popitem()[0] == "c"
    d = three(x)
    assert d == d and len(d) == 3 and "tensor([-1., -1.])" in repr(d)
