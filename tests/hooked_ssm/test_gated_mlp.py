"""The gated MLP, against its equation, and in a model that TransformerLens's tools look at."""

import torch

from hooked_ssm import HookedSSM, zoo
from hooked_ssm.gated_mlp import GatedMLP
from hooked_ssm.layers import MLP


def model() -> HookedSSM:
    cfg = zoo.gla(
        d_model=8, d_vocab=11, n_layers=2, n_heads=2, d_mlp=12, gated_mlp=True, act_fn="silu", seed=0
    )
    return HookedSSM(cfg).double()


def test_it_is_its_equation():
    mlp = model().blocks[1].mlp
    assert isinstance(mlp, GatedMLP)
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    gate = x @ mlp.W_gate
    wanted = (gate * torch.sigmoid(gate) * (x @ mlp.W_in)) @ mlp.W_out
    torch.testing.assert_close(mlp(x), wanted, rtol=1e-12, atol=1e-14)
    assert {name for name, _ in mlp.named_parameters()} == {"W_gate", "W_in", "W_out"}


def test_its_hooks_fire_and_their_edits_flow():
    net, tokens = model(), torch.randint(11, (2, 5))
    logits, cache = net.run_with_cache(tokens)
    assert torch.equal(logits, net(tokens))
    pre, linear, post = (cache[f"blocks.0.mlp.hook_{name}"] for name in ("pre", "pre_linear", "post"))
    torch.testing.assert_close(post, torch.nn.functional.silu(pre) * linear, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(cache["blocks.0.hook_mlp_out"], post @ net.blocks[0].mlp.W_out)
    for name in ("pre", "pre_linear", "post"):

        def at_3(x, hook):
            x = x.clone()
            x[:, 3] = 0.0
            return x

        edited = net.run_with_hooks(tokens, fwd_hooks=[(f"blocks.0.mlp.hook_{name}", at_3)])
        assert torch.equal(edited[:, :3], logits[:, :3])
        assert ((edited[:, 3] - logits[:, 3]).abs().amax(-1) > 1e-9).all(), name


def test_every_weight_has_a_gradient_and_can_be_drawn_anew():
    net = model()
    net(torch.randint(11, (2, 5)), return_type="loss").backward()
    for p in net.blocks[0].mlp.parameters():
        assert p.grad is not None and p.grad.abs().sum() > 0
    net.reset_parameters()
    drawn = [p.clone() for p in net.blocks[0].mlp.parameters()]
    for p in net.blocks[0].mlp.parameters():
        p.data.zero_()
    net.reset_parameters()
    assert all(torch.equal(p, was) for p, was in zip(net.blocks[0].mlp.parameters(), drawn, strict=True))
    assert all(0.005 < p.std() < 0.04 for p in drawn)


def test_the_residual_stream_is_the_sum_of_what_is_written():
    net, tokens = model(), torch.randint(11, (2, 5))
    _, cache = net.run_with_cache(tokens)
    parts = cache.decompose_resid(-1)
    torch.testing.assert_close(parts.sum(0), cache["blocks.1.hook_resid_post"])
    assert torch.equal(net.accumulated_bias(2), torch.zeros(8, dtype=torch.float64))


def test_it_is_saved_and_only_where_the_config_says_so(tmp_path):
    net, tokens = model(), torch.randint(11, (2, 5))
    net.save(tmp_path)
    assert torch.equal(HookedSSM.load(tmp_path)(tokens), net(tokens))
    plain = HookedSSM(zoo.gla(d_model=8, d_vocab=11, n_heads=2))
    assert isinstance(plain.blocks[0].mlp, MLP)
