"""TransformerLens's tools that read weights alone: singular vectors and affinities of heads."""

import pytest
import torch
from transformer_lens import SVDInterpreter
from transformer_lens.tools.analysis import attention_head_subspace_affinity

from hooked_ssm.mixers import Attention


def same_up_to_sign(ours, theirs):
    sign = (ours * theirs).sum(0, keepdim=True).sign()
    torch.testing.assert_close(ours, theirs * sign, rtol=1e-8, atol=1e-8)


def attention_layers(model):
    return [layer for layer, block in enumerate(model.blocks) if isinstance(block.mixer, Attention)]


def test_singular_vectors_of_mlp_weights(mlp_case):
    model = mlp_case.model
    interpreter = SVDInterpreter(model)
    with torch.no_grad():
        # TransformerLens takes the norm's weight into W_in, as folding would.
        w_in = (model.blocks[1].ln2.w[:, None] * model.blocks[1].mlp.W_in).T
        for kind, matrix in (("w_in", w_in), ("w_out", model.blocks[1].mlp.W_out)):
            vectors = interpreter.get_singular_vectors(kind, layer_index=1, num_vectors=3)
            expected = torch.linalg.svd(matrix).Vh[:3] @ model.W_U
            same_up_to_sign(vectors[:, 0], expected.T)


def test_singular_vectors_of_a_heads_OV(case):
    model = case.model
    interpreter = SVDInterpreter(model)
    for layer in attention_layers(model):
        vectors = interpreter.get_singular_vectors("OV", layer_index=layer, head_index=1, num_vectors=2)
        with torch.no_grad():
            mixer = model.blocks[layer].mixer
            expected = torch.linalg.svd(mixer.W_V[1] @ mixer.W_O[1]).Vh[:2] @ model.W_U
        same_up_to_sign(vectors[:, 0], expected.T)


def test_a_mamba_has_no_OV_matrix(ssm_case):
    """Between its values and what it reads stand a convolution and an activation: no one matrix."""
    with pytest.raises(KeyError, match=r"blocks\.0\.attn\.W_V"):
        SVDInterpreter(ssm_case.model).get_singular_vectors("OV", layer_index=0, head_index=0)


@pytest.mark.parametrize("role", ["Q", "K", "V"])
def test_affinities_are_those_of_the_attention_layers(case, role):
    model, layers = case.model, attention_layers(case.model)
    if not layers:
        with pytest.raises(ValueError, match="No attention layers"):
            attention_head_subspace_affinity(model, target_role=role)
        return
    result = attention_head_subspace_affinity(model, target_role=role, layer_order="all")
    assert result.source_layer_indices == tuple(layers)

    def basis(matrix):
        return torch.linalg.qr(matrix.detach()).Q

    source = basis(model.blocks[layers[-1]].mixer.W_O[1].T)
    target = basis(getattr(model.blocks[layers[0]].mixer, f"W_{role}")[0])
    expected = (source.T @ target).square().sum()
    torch.testing.assert_close(result.scores[-1, 1, 0, 0], expected, rtol=1e-8, atol=1e-8)
