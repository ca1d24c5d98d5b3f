"""flash-linear-attention's layouts, against its equations run naively on the same weights."""

import json

import pytest
import torch
from safetensors.torch import save_file

from hooked_ssm import HookedSSM

from .naive_fla import COMMON, CONFIGS, D_VOCAB, logits, random_weights


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_logits_are_those_of_their_equations(name, tmp_path):
    torch.manual_seed(0)
    config = CONFIGS[name]
    weights = random_weights(config)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(weights, tmp_path / "model.safetensors")
    ours = HookedSSM.from_pretrained(tmp_path)
    assert ours.cfg.dtype == torch.float64
    tokens = torch.randint(D_VOCAB, (2, 13))
    wanted = torch.stack([logits(config, weights, document) for document in tokens])
    torch.testing.assert_close(ours(tokens), wanted, rtol=1e-10, atol=1e-10)

    state, stepped = None, []
    for t in range(13):
        step, state = ours.step(tokens[:, t : t + 1], state)
        stepped.append(step)
    torch.testing.assert_close(torch.cat(stepped, 1), wanted, rtol=1e-10, atol=1e-10)
    ours.save_pretrained(tmp_path / "ours")
    assert torch.equal(HookedSSM.from_pretrained(tmp_path / "ours")(tokens), ours(tokens))


def test_the_width_of_the_mlp_follows_theirs():
    """2/3 of hidden_ratio widths, up to a multiple of 256."""
    from hooked_ssm.loading.fla import delta_net

    config = COMMON | {"model_type": "delta_net", "hidden_size": 192, "intermediate_size": None}
    assert delta_net(config).cfg.d_mlp == 512
    assert delta_net(config | {"hidden_ratio": 2}).cfg.d_mlp == 256
    assert delta_net(config | {"hidden_ratio": 8}).cfg.d_mlp == 1024


@pytest.mark.parametrize(
    ("name", "option", "message"),
    [
        ("delta_net", {"qk_norm": "sum"}, "qk_norm='sum' of this fla DeltaNet"),
        ("delta_net", {"qk_activation": "elu"}, "qk_activation='elu'"),
        ("delta_net", {"conv_bias": True}, "conv_bias=True"),
        ("delta_net", {"attn": {"layers": [1], "num_heads": 2}}, "attn={'layers'"),
        ("delta_net", {"some_new_option": 1}, "some_new_option=1 of this fla DeltaNet is not known"),
        ("gated_deltanet", {"num_v_heads": 4}, "num_v_heads=4 of this fla Gated DeltaNet"),
        ("gla", {"use_short_conv": True}, "use_short_conv=True of this fla GLA"),
        ("gla", {"clamp_min": -3.0}, "clamp_min=-3.0"),
        ("gla", {"num_kv_heads": 1}, "num_kv_heads=1"),
    ],
)
def test_what_cannot_be_honoured_is_named(name, option, message, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[name] | option))
    with pytest.raises(ValueError, match=message):
        HookedSSM.from_pretrained(tmp_path)
