"""TransformerLens's decompositions of the residual stream: the parts sum to the whole, to rounding."""

import pytest
import torch

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def input_of(cache, layer, mlp_input=False):
    """The residual stream that a layer, its MLP or (layer n_layers) the unembedding reads."""
    n_layers = cache.model.cfg.n_layers
    if layer == n_layers:
        return cache["resid_post", n_layers - 1]
    return cache["resid_mid" if mlp_input else "resid_pre", layer]


def places(model, mlp_input=True):
    """(layer, whether before its MLP): a parallel block has the stream before the layer alone."""
    layers = range(model.cfg.n_layers)
    mlp_input = mlp_input and not model.cfg.parallel_attn_mlp
    before_mlps = [(layer, True) for layer in layers] if mlp_input else []
    return [(layer, False) for layer in layers] + before_mlps + [(model.cfg.n_layers, False)]


def norm_at(model, layer, mlp_input=False):
    if layer == model.cfg.n_layers:
        return model.ln_final
    return model.blocks[layer].ln2 if mlp_input else model.blocks[layer].ln1


def undo_affine(norm, normalized):
    return ((normalized - norm.b) / norm.w).detach()


def test_accumulated_resid_is_the_stream_before_every_layer(case):
    cache, n_layers = case.clean_cache, case.model.cfg.n_layers
    if case.model.cfg.parallel_attn_mlp:
        with pytest.raises(KeyError, match="there is none in between"):
            cache.accumulated_resid(incl_mid=True)
        return
    stack, labels = cache.accumulated_resid(return_labels=True, incl_mid=True)
    names = [f"{layer}_{place}" for layer in range(n_layers) for place in ("pre", "mid")] + ["final_post"]
    assert labels == names
    expected = [cache[f"resid_{place}", layer] for layer in range(n_layers) for place in ("pre", "mid")]
    torch.testing.assert_close(
        stack, torch.stack([*expected, cache["resid_post", n_layers - 1]]), rtol=0, atol=0
    )
    partial = cache.accumulated_resid(layer=1, mlp_input=True, pos_slice=2)
    torch.testing.assert_close(partial[-1], cache["resid_mid", 1][:, 2], rtol=0, atol=0)


def test_accumulated_resid_through_the_final_norm_is_what_the_norm_makes_of_it(case):
    cache = case.clean_cache
    stack = cache.accumulated_resid(apply_ln=True)
    with torch.no_grad():
        torch.testing.assert_close(stack[1], case.model.ln_final(cache["resid_pre", 1]), **CLOSE)
    torch.testing.assert_close(stack[-1], cache["ln_final.hook_normalized"], **CLOSE)


def test_components_sum_to_the_stream_before_every_layer_and_mlp(case):
    cache = case.clean_cache
    for layer, mlp_input in places(case.model):
        stack, labels = cache.decompose_resid(layer, mlp_input=mlp_input, return_labels=True)
        assert len(labels) == len(stack)
        torch.testing.assert_close(stack.sum(0), input_of(cache, layer, mlp_input), **CLOSE)


def test_the_stream_before_a_parallel_mlp_is_not_decomposed_with_its_own_mixer(rebuilt):
    cache = rebuilt("rotary").clean_cache
    for decompose in (cache.decompose_resid, cache.get_full_resid_decomposition):
        with pytest.raises(ValueError, match="reads resid_pre: leave out mlp_input"):
            decompose(1, mlp_input=True)


def test_components_of_one_kind(case):
    cache, n_layers = case.clean_cache, case.model.cfg.n_layers
    mixers = cache.decompose_resid(mode="attn", incl_embeds=False)
    torch.testing.assert_close(mixers, cache.stack_activation("attn_out"), rtol=0, atol=0)
    embeds = cache.decompose_resid(0)
    torch.testing.assert_close(embeds.sum(0), cache["resid_pre", 0], **CLOSE)
    if not case.model.cfg.attn_only:
        mlps, labels = cache.decompose_resid(mode="mlp", incl_embeds=False, return_labels=True)
        assert labels == [f"{layer}_mlp_out" for layer in range(n_layers)]
        torch.testing.assert_close(mlps, cache.stack_activation("mlp_out"), rtol=0, atol=0)


def test_normalised_components_sum_to_the_normalised_stream(case):
    """At every norm, by its own kind: LayerNorm centres the parts, RMSNorm does not. Weights stay outside."""
    cache, n_layers = case.clean_cache, case.model.cfg.n_layers
    for layer, mlp_input in places(case.model, mlp_input=not case.model.cfg.attn_only):
        stack = cache.decompose_resid(layer, mlp_input=mlp_input, apply_ln=True)
        name = "ln_final" if layer == n_layers else f"blocks.{layer}.ln{2 if mlp_input else 1}"
        norm = norm_at(case.model, layer, mlp_input)
        expected = undo_affine(norm, cache[f"{name}.hook_normalized"])
        torch.testing.assert_close(stack.sum(0), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pos_slice", [-1, (1, 4)], ids=str)
def test_normalised_components_at_some_positions(case, pos_slice):
    cache = case.clean_cache
    cut = slice(*pos_slice) if isinstance(pos_slice, tuple) else pos_slice
    stack = cache.decompose_resid(apply_ln=True, pos_slice=pos_slice)
    torch.testing.assert_close(stack, cache.decompose_resid(apply_ln=True)[:, :, cut], **CLOSE)


def test_heads_are_each_heads_write(case):
    model = case.model
    cache = case.clean_cache
    stack, labels = cache.stack_head_results(return_labels=True, incl_remainder=True)
    assert labels[:2] == ["L0H0", "L0H1"] and labels[-1] == "remainder"
    torch.testing.assert_close(stack.sum(0), cache["resid_post", model.cfg.n_layers - 1], **CLOSE)
    model.set_use_attn_result(True)
    try:
        results = case.cached(case.clean)
    finally:
        model.set_use_attn_result(False)
    for layer in range(model.cfg.n_layers):
        of_layer = stack[layer * model.cfg.n_heads :][: model.cfg.n_heads].movedim(0, 2)
        torch.testing.assert_close(of_layer, results["result", layer], **CLOSE)
        written = of_layer.sum(2) + model.blocks[layer].mixer.b_O.detach()
        torch.testing.assert_close(written, cache["attn_out", layer], **CLOSE)
    torch.testing.assert_close(results.stack_head_results(incl_remainder=True), stack, **CLOSE)


@pytest.mark.parametrize("expand_neurons", [True, False])
@pytest.mark.parametrize("remove_batch_dim", [False, True])
def test_heads_neurons_embeddings_and_biases_sum_to_the_stream(case, expand_neurons, remove_batch_dim):
    cache = case.cached(case.clean[:1], remove_batch_dim=remove_batch_dim)
    for layer, mlp_input in places(case.model):
        stack, labels = cache.get_full_resid_decomposition(
            layer, mlp_input=mlp_input, expand_neurons=expand_neurons, return_labels=True
        )
        assert len(labels) == len(stack)
        torch.testing.assert_close(stack.sum(0), input_of(cache, layer, mlp_input), **CLOSE)


def test_the_full_decomposition_normalised_and_projected(case):
    cache, model = case.clean_cache, case.model
    direction = model.W_U.detach()[:, :3]
    expected = undo_affine(model.ln_final, cache["ln_final.hook_normalized"]) @ direction
    stack = cache.get_full_resid_decomposition(apply_ln=True, project_output_onto=direction)
    torch.testing.assert_close(stack.sum(0), expected, rtol=1e-10, atol=1e-10)
    apart = cache.get_full_resid_decomposition(apply_ln=True) @ direction
    torch.testing.assert_close(stack, apart, rtol=1e-10, atol=1e-10)


def test_neurons_and_remainder_sum_to_the_stream(mlp_case):
    cache, model = mlp_case.clean_cache, mlp_case.model
    stack, labels = cache.stack_neuron_results(-1, incl_remainder=True, return_labels=True)
    assert len(labels) == model.cfg.n_layers * model.cfg.d_mlp + 1
    torch.testing.assert_close(stack.sum(0), cache["resid_post", model.cfg.n_layers - 1], **CLOSE)
    with torch.no_grad():
        mlp = model.blocks[1].mlp
        written = cache.get_neuron_results(1).sum(2) + mlp.b_out
        torch.testing.assert_close(written, cache["mlp_out", 1], **CLOSE)


def test_head_results_are_cached_once_computed(case):
    cache = case.clean_cache
    cache.compute_head_results()
    z, W_O = cache["z", 1], case.model.blocks[1].mixer.W_O.detach()
    torch.testing.assert_close(cache["result", 1], torch.einsum("bphd,hdm->bphm", z, W_O), **CLOSE)
