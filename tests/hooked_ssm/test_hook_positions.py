"""A hook that carries some positions alone: what it is handed, and that edits there are edits."""

import pytest
import torch

from hooked_ssm import HookedSSM, zoo

PRESETS = ["mamba", "mamba2", "based", "gla", "delta_net", "gated_delta_net", "h3"]
QUANTITIES = "hook_ssm_decay", "hook_ssm_write", "hook_ssm_state"
TOKENS = torch.randint(0, 7, (2, 6), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=PRESETS)
def model(request):
    return HookedSSM(
        zoo.PRESETS[request.param](d_model=8, n_layers=2, d_vocab=7, dtype=torch.float64, seed=0)
    )


def hooks_of(model):
    names = [f"blocks.1.mixer.{quantity}" for quantity in QUANTITIES]
    return [name for name in names if name in model.hook_dict]


def test_it_is_handed_those_and_an_edit_there_is_an_edit(model):
    def edit_all(x, hook):
        seen["all"] = x.clone()
        x = x.clone()
        x[:, 1] *= 0.5
        x[:, 4] += 1
        return x

    def edit_two(x, hook):
        seen["two"] = x.clone()
        return torch.stack([0.5 * x[:, 0], x[:, 1] + 1], dim=1)

    for name in hooks_of(model):
        seen = {}
        want = model.run_with_hooks(TOKENS, fwd_hooks=[(name, edit_all)])
        with model.hook_dict[name].only([1, 4]):
            got = model.run_with_hooks(TOKENS, fwd_hooks=[(name, edit_two)])
            cached = model.run_with_cache(TOKENS, names_filter=name)[1][name]
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
        assert (got - model(TOKENS)).abs().max() > 1e-6
        torch.testing.assert_close(seen["two"], seen["all"][:, [1, 4]], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(cached, seen["two"])


def test_looking_at_some_positions_changes_nothing(model):
    for name in hooks_of(model):
        with model.hook_dict[name].only([0, 5]):
            logits = model.run_with_hooks(TOKENS, fwd_hooks=[(name, lambda x, hook: None)])
        assert torch.equal(logits, model(TOKENS))


def test_a_hook_that_cannot_raises():
    model = HookedSSM(zoo.mamba(d_model=4, n_layers=1, d_vocab=7, seed=0))
    hook = model.hook_dict["blocks.0.hook_resid_pre"]
    with hook.only([2]), pytest.raises(ValueError, match=r"positions \[2\] alone: it was handed 6"):
        model.run_with_cache(TOKENS)
    model.run_with_cache(TOKENS)
    with pytest.raises(ValueError, match="must increase"), hook.only([2, 1]):
        pass
