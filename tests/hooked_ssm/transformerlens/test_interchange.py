"""TransformerLens's interchange interventions on subspaces, and its random-initialisation control."""

import dataclasses

import pytest
import torch
from transformer_lens.tools.analysis import (
    SubspaceInterchange,
    collect_activations,
    fit_das,
    intervened_logits,
    mean_difference_basis,
    neuron_basis,
    random_basis,
    reinitialized,
)

from hooked_ssm import HookedSSM

HOOKS = ["blocks.1.hook_resid_pre", "blocks.0.hook_attn_out", "blocks.0.hook_mixer_out"]
POSITIONS = torch.tensor([1, 3])


def task_logits(model):
    return lambda tokens: model(tokens)[:, -1]


@pytest.mark.parametrize("hook", HOOKS)
def test_collected_activations_are_the_caches(case, hook):
    collected = collect_activations(
        case.model, hook, case.clean, task_logits(case.model), positions=POSITIONS
    )
    torch.testing.assert_close(collected, case.clean_cache[hook][torch.arange(2), POSITIONS], rtol=0, atol=0)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("rank", [2, None], ids=["subspace", "whole space"])
def test_intervened_logits_are_those_of_a_hook_that_does_it(case, hook, rank):
    model, d_model = case.model, case.model.cfg.d_model
    basis = random_basis(d_model, rank or d_model, seed=0).double()
    source = collect_activations(model, hook, case.clean, task_logits(model), positions=POSITIONS)
    logits = intervened_logits(
        model,
        hook,
        SubspaceInterchange(basis),
        case.corrupted,
        source,
        task_logits(model),
        positions=POSITIONS,
    )
    documents = torch.arange(2)

    def swap(x, hook):
        base, swapped = x[documents, POSITIONS], x.clone()
        swapped[documents, POSITIONS] = base + (source - base) @ basis @ basis.T if rank else source
        return swapped

    with torch.no_grad():
        expected = model.run_with_hooks(case.corrupted, fwd_hooks=[(hook, swap)])[:, -1]
        assert not torch.allclose(expected, model(case.corrupted)[:, -1])
    # random_basis is orthonormal to float32.
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_some_neurons_or_channels_can_be_interchanged(case):
    model = case.model
    hook = "blocks.0.hook_y" if model.cfg.attn_only else "blocks.0.mlp.hook_post"
    source = collect_activations(model, hook, case.clean, task_logits(model), positions=POSITIONS)
    swap = SubspaceInterchange(neuron_basis(source.shape[1], [1, 4]))
    logits = intervened_logits(
        model, hook, swap, case.corrupted, source, task_logits(model), positions=POSITIONS
    )

    def by_hand(x, hook):
        for document, position in enumerate(POSITIONS):
            x[document, position, [1, 4]] = source[document, [1, 4]]

    with torch.no_grad():
        expected = model.run_with_hooks(case.corrupted, fwd_hooks=[(hook, by_hand)])[:, -1]
        assert not torch.allclose(expected, model(case.corrupted)[:, -1])
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-10)


def test_das_finds_a_subspace_and_leaves_the_model_as_it_was(case):
    """Targets are what the whole interchange predicts, which a large enough subspace can reproduce."""
    model, hook = case.model, "blocks.1.hook_resid_pre"
    generator = torch.Generator().manual_seed(2)
    base, source = (torch.randint(model.cfg.d_vocab, (24, 4), generator=generator) for _ in range(2))
    positions = torch.full((24,), 3)
    everything = SubspaceInterchange(torch.eye(model.cfg.d_model, dtype=torch.float64))
    activations = collect_activations(model, hook, source, task_logits(model), positions=positions)
    arguments = (base, activations, task_logits(model))
    targets = intervened_logits(model, hook, everything, *arguments, positions=positions).argmax(-1)
    result = fit_das(
        model,
        hook,
        base,
        source,
        targets,
        task_logits(model),
        rank=model.cfg.d_model - 2,
        base_positions=positions,
        source_positions=positions,
        epochs=6,
        batch_size=24,
        lr=0.05,
    )
    assert result.losses[-1] < result.losses[0]
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    learned = SubspaceInterchange(result.subspace)
    logits = intervened_logits(model, hook, learned, *arguments, positions=positions)
    with torch.no_grad():
        unchanged = (model(base)[:, -1].argmax(-1) == targets).double().mean()
    assert (logits.argmax(-1) == targets).double().mean() > unchanged


def test_class_means_of_cached_activations_give_a_basis(case):
    resid = case.clean_cache["resid_post", 0].flatten(0, 1)
    basis = mean_difference_basis(resid, [i % 2 for i in range(len(resid))])
    difference = resid[0::2].mean(0) - resid[1::2].mean(0)
    cosine = torch.nn.functional.cosine_similarity(basis[:, 0].double(), difference, dim=0)
    assert abs(float(cosine)) == pytest.approx(1.0, abs=1e-5)


def test_activations_by_head_are_refused(case):
    """TransformerLens takes [batch, pos, d] alone; Mamba's hook_y has the same content in that shape."""
    with pytest.raises(ValueError, match=r"must be \[batch, pos, d_model\]"):
        collect_activations(
            case.model, "blocks.0.attn.hook_z", case.clean, task_logits(case.model), positions=POSITIONS
        )


def test_reinitialising_restores_the_initial_distributions(case):
    """What is the same in every new model is so again (norms 1, biases 0), what is drawn is drawn anew."""
    model, clone = case.model, reinitialized(case.model, seed=5)
    one, other = (
        HookedSSM(dataclasses.replace(model.cfg, mixers=model.cfg.mixer_list, seed=seed)).state_dict()
        for seed in (1, 2)
    )
    for name, p in clone.state_dict().items():
        assert not torch.equal(p, model.state_dict()[name]), f"{name} kept its value"
        if torch.equal(one[name], other[name]):
            # To the float32 in which a new model's weights are drawn.
            torch.testing.assert_close(p, one[name], rtol=1e-6, atol=0)
        else:
            assert not torch.equal(p, one[name]), name
            assert p.numel() < 16 or 0.5 < float(p.std() / one[name].std()) < 2, name
    assert (clone.ln_final.w == 1).all() and (clone.blocks[0].ln1.w == 1).all()
    assert not clone.training and clone.hook_dict["hook_embed"] is clone.hook_embed
    again, different = reinitialized(model, seed=5), reinitialized(model, seed=6)
    assert torch.equal(again.W_E, clone.W_E) and not torch.equal(different.W_E, clone.W_E)
