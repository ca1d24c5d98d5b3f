"""The short convolution against PyTorch's own, and what its hooks hand out."""

import pytest
import torch
import torch.nn.functional as F

from hooked_ssm.mixers import ShortConv


def pair(width: int, bias: bool) -> tuple[ShortConv, torch.nn.Conv1d]:
    torch.manual_seed(0)
    ours = ShortConv(5, width, bias=bias).double()
    theirs = torch.nn.Conv1d(5, 5, width, groups=5, padding=width - 1, bias=bias).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 2, 4, 7])
@pytest.mark.parametrize("length", [1, 3, 9])
def test_it_is_a_causal_depthwise_conv1d(width, length, bias):
    ours, theirs = pair(width, bias)
    x = torch.randn(2, length, 5, dtype=torch.float64, requires_grad=True)
    got, wanted = ours.extend(x)[0], theirs(x.mT)[..., :length].mT
    torch.testing.assert_close(got, wanted, rtol=1e-13, atol=1e-13)
    weight = torch.randn_like(got)
    for p, q in zip([x, *ours.parameters()], [x, *theirs.parameters()], strict=True):
        (grad,) = torch.autograd.grad((got * weight).sum(), p, retain_graph=True)
        (wanted_grad,) = torch.autograd.grad((wanted * weight).sum(), q, retain_graph=True)
        torch.testing.assert_close(grad, wanted_grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("width", [1, 3])
def test_its_memory_is_its_last_inputs(width):
    conv, _ = pair(width, True)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    _, past = conv.extend(x)
    assert torch.equal(past, x[:, 9 - (width - 1) :])
    _, past = conv.extend(x[:, :1])  # shorter than the convolution: what came before the document is 0
    assert torch.equal(past, F.pad(x[:, :1], (0, 0, width - 1, 0))[:, 1:])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 4])
def test_its_hooks_share_no_memory(width, bias):
    conv, _ = pair(width, bias)
    seen = {}
    for name in ("hook_conv_in", "hook_conv_taps", "hook_conv"):
        getattr(conv, name).add_hook(lambda tensor, hook, name=name: seen.update({name: tensor}))
    x = torch.randn(2, 4, 5, dtype=torch.float64)
    conv.extend(x)
    places = [tensor.untyped_storage().data_ptr() for tensor in (x, *seen.values())]
    assert len(places) == len(set(places)) == 4


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="d_conv of at least 1, got 0"):
        ShortConv(5, 0)
