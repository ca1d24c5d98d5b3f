"""Circuits run as their definition says, edge by edge."""

import pytest
import torch

from .case import DOCS, ROLES, case_of
from .naive_circuit import naive_logits

CLOSE = {"rtol": 1e-9, "atol": 1e-9}  # float64; sums in another order
KINDS = ["attention", "mamba", "delta_net", "based", "hybrid", "gated_delta_net", "mamba2", "h3", "hyena"]
KINDS += ["gla", "base_conv", "rotary"]


def logits_of(case, tokens):
    with torch.no_grad():
        return case.model(tokens, logit_positions=case.docs.answer_pos)


@pytest.mark.parametrize("kind", KINDS)
def test_all_edges_are_the_model_and_none_the_corrupted_run(kind):
    case = case_of(kind)
    every = torch.ones(1, len(case.index), dtype=torch.bool)
    full, empty = case.runs().logits(torch.cat([every, ~every]))
    torch.testing.assert_close(full, logits_of(case, case.clean), **CLOSE)
    torch.testing.assert_close(empty, logits_of(case, case.corrupted), **CLOSE)
    assert (full - empty).abs().max() > 0.01


def ablated_by_hand(case, ablation):
    names = case.index.hooks[:-1]
    _, corrupted = case.model.run_with_cache(case.corrupted, names_filter=names)
    _, clean = case.model.run_with_cache(case.clean, names_filter=names)
    values = {name: corrupted[name] for name in names}
    if ablation == "zero":
        values = {name: value * 0 for name, value in values.items()}
    if ablation == "mean":
        for name in names:
            for role in range(len(ROLES) + 1):
                here = case.role_of == role
                values[name][here] = clean[name][here].mean(0)
    return values


def naive(case, circuit, ablation="corrupt"):
    edges = {tuple(end) for end in case.index.ends[circuit].tolist()}
    return naive_logits(
        case.model,
        case.index,
        edges,
        case.clean,
        case.corrupted,
        case.role_of,
        case.docs.answer_pos,
        ablated_by_hand(case, ablation),
    )


@pytest.mark.parametrize("kind", ["attention", "mamba", "delta_net", "based"])
def test_some_edges_do_what_a_run_of_the_whole_model_for_every_node_does(kind):
    case = case_of(kind)
    circuit = case.some(0.95)
    (found,) = case.runs().logits(circuit[None])
    torch.testing.assert_close(found, naive(case, circuit), **CLOSE)
    for tokens in (case.clean, case.corrupted):
        assert (found - logits_of(case, tokens)).abs().max() > 1e-3


@pytest.mark.parametrize("ablation", ["mean", "zero"])
def test_means_and_zeros_as_by_hand(ablation):
    case = case_of("attention")
    circuit = case.some(0.95)
    (found,) = case.runs(ablation).logits(circuit[None])
    torch.testing.assert_close(found, naive(case, circuit, ablation), **CLOSE)


def test_one_edge_is_ablated_for_its_reader_alone():
    """The edge from the key's embedding to one head's k in layer 1: that head's k at the key is of a residual
    stream with the other embedding, and the stream itself, with all other readers, is as it was."""
    case = case_of("attention")
    index, model = case.index, case.model
    embed, k, key = index.hooks.index("hook_embed"), index.hooks.index("blocks.1.mixer.hook_k"), 0
    number = (index.ends == torch.tensor([embed, key, 0, k, key, 1])).all(1)
    assert number.sum() == 1 and ROLES[key] == "key"
    (found,) = case.runs().logits(~number[None])

    swapped = model.hook_embed(model.embed(case.corrupted)) - model.embed(case.clean)

    def k_from_another_stream(k, hook):
        with torch.no_grad():
            resid = seen["resid"] + swapped
            other = torch.einsum("bpd,hde->bphe", model.blocks[1].ln1(resid), model.blocks[1].mixer.W_K)
        here = case.role_of == key
        k = k.clone()
        k[..., 1, :][here] = other[..., 1, :][here]
        return k

    seen = {}
    with torch.no_grad():
        logits = model.run_with_hooks(
            case.clean,
            fwd_hooks=[
                ("blocks.1.hook_resid_pre", lambda x, hook: seen.update(resid=x.clone())),
                ("blocks.1.mixer.hook_k", k_from_another_stream),
            ],
            logit_positions=case.docs.answer_pos,
        )
    torch.testing.assert_close(found, logits, **CLOSE)
    assert (logits - logits_of(case, case.clean)).abs().max() > 1e-4


def test_circuits_together_and_documents_in_parts_are_as_alone(monkeypatch):
    case = case_of("attention")
    circuits = torch.stack([case.some(share) for share in (0.3, 0.9)])
    together = case.runs().logits(circuits)
    alone = torch.cat([case.runs().logits(circuit[None]) for circuit in circuits])
    torch.testing.assert_close(together, alone, **CLOSE)
    monkeypatch.setattr("hooked_ssm.circuits.runs.DOCS", 1)
    torch.testing.assert_close(case.runs().logits(circuits), together, **CLOSE)
    monkeypatch.setattr("hooked_ssm.circuits.runs.free_bytes", lambda device: 1)
    torch.testing.assert_close(case.runs().logits(circuits), together, **CLOSE)
    assert together.shape == (2, DOCS, case.model.cfg.d_vocab)


def test_an_unknown_ablation_is_refused():
    case = case_of("attention")
    with pytest.raises(ValueError, match="ablation must be one of corrupt, mean, zero, got 'noise'"):
        case.runs("noise")
