"""Models whose memory is a matrix, on Triton's back end: hooks carry the same, and edits mean the same."""

import pytest
import torch

pytest.importorskip("triton")

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.ops import use_backend
from hooked_ssm.states import ablate_states

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TOKENS = torch.randint(0, 7, (1, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE)
SEEN = "hook_ssm_decay", "hook_ssm_write", "hook_ssm_state", "hook_y"


@pytest.mark.parametrize("preset", ["mamba2", "delta_net", "gated_delta_net"])
def test_a_model_is_the_same_on_either_back_end(preset):
    model = HookedSSM(zoo.PRESETS[preset](d_model=8, n_layers=1, d_vocab=7, dtype=torch.float64, seed=0))
    model.to(DEVICE)
    found = {}
    for backend in ("torch", "triton"):
        with use_backend(backend):
            loss, cache = model.run_with_cache(TOKENS, return_type="loss", names_filter=wanted)
            gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
            with model.hooks(fwd_hooks=ablate_states(model, positions=[2])), torch.no_grad():
                edited = model(TOKENS)
        found[backend] = [*(cache[name] for name in sorted(cache)), *gradients, edited]
    assert len(cache) >= 3
    torch.testing.assert_close(found["triton"], found["torch"], rtol=1e-9, atol=1e-11)


def wanted(name):
    return name.endswith(SEEN)
