"""TransformerLens's interchange on subspaces and DAS, at hooks of any shape."""

import pytest
import torch
from transformer_lens.tools.analysis import (
    SubspaceInterchange,
    collect_activations,
    fit_das,
    intervened_logits,
    random_basis,
)

from hooked_ssm import Flattened

from .models import D_VOCAB, scattered

POSITIONS = torch.tensor([1, 3, 2])
HOOKS = [
    ("attention", "blocks.0.hook_z"),
    ("mamba", "blocks.0.hook_ssm_state"),
    ("delta_net", "blocks.0.hook_k"),
]
HOOKS += [("mamba", "blocks.1.hook_conv_taps"), ("attention", "blocks.1.hook_resid_pre")]


def documents(count=3):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(D_VOCAB, (2, count, 5), generator=generator)


def last_logits(model):
    return lambda tokens: model(tokens)[:, -1]


@pytest.mark.parametrize(("kind", "hook"), HOOKS)
@pytest.mark.parametrize("rank", [2, None], ids=["subspace", "everything"])
def test_a_subspace_is_interchanged_as_by_hand(kind, hook, rank):
    model, (base, other) = scattered(kind), documents()
    view, rows = Flattened(model), torch.arange(3)
    source = collect_activations(view, hook, other, last_logits(model), positions=POSITIONS)
    cached = model.run_with_cache(other)[1][hook]
    torch.testing.assert_close(source, cached[rows, POSITIONS].flatten(1), rtol=0, atol=0)
    basis = random_basis(source.shape[1], rank, seed=0).double() if rank else torch.eye(source.shape[1])
    logits = intervened_logits(
        view,
        hook,
        SubspaceInterchange(basis),
        base,
        source,
        last_logits(model),
        positions=POSITIONS,
    )

    def swap(x, hook):
        before = x[rows, POSITIONS].flatten(1)
        after = before + (source - before) @ basis.double() @ basis.double().T
        x[rows, POSITIONS] = after.view(3, *x.shape[2:])
        return x

    with torch.no_grad():
        expected = model.run_with_hooks(base, fwd_hooks=[(hook, swap)])[:, -1]
        assert not torch.allclose(expected, model(base)[:, -1])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_das_learns_a_subspace_of_a_state():
    """Targets are what interchanging the whole state predicts."""
    model, hook = scattered("mamba"), "blocks.0.hook_ssm_state"
    view, (base, other) = Flattened(model), documents(16)
    where = torch.full((16,), 3)
    source = collect_activations(view, hook, other, last_logits(model), positions=where)
    whole = SubspaceInterchange(torch.eye(source.shape[1], dtype=torch.float64))
    targets = intervened_logits(view, hook, whole, base, source, last_logits(model), positions=where).argmax(
        -1
    )
    found = fit_das(
        view,
        hook,
        base,
        other,
        targets,
        last_logits(model),
        rank=16,
        base_positions=where,
        source_positions=where,
        epochs=6,
        batch_size=16,
        lr=0.05,
    )
    assert found.losses[-1] < found.losses[0] and found.subspace.basis.shape == (source.shape[1], 16)
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_what_has_no_vector_at_a_position_and_training_mode_are_refused():
    model, (base, _) = scattered("attention"), documents()
    with pytest.raises(ValueError, match=r"hook_pattern' is not \[batch, pos, ...\]"):
        collect_activations(
            Flattened(model), "blocks.0.hook_pattern", base, last_logits(model), positions=POSITIONS
        )
    with pytest.raises(ValueError, match="evaluation mode"):
        collect_activations(
            Flattened(model.train()), "blocks.0.hook_z", base, last_logits(model), positions=POSITIONS
        )
