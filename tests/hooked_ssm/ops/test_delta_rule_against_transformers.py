"""Our delta rule against both of transformers' for Qwen3-Next, by chunks of 64 and one position at a time.

Theirs divide q by sqrt(d_key), which ours leaves to the caller. They compute in float32 whatever they are
given: in float64 here, where their file's name for float32 means that.

Agreement is to the largest entry of each tensor; in float32 within some hundred roundings. One exception: the
gradient of the logarithms of the decays, by chunks of theirs. Products that no decay is in cancel in it, and
beside strong decays their rounding prevails: in float32 it was found 0.5 % of the largest entry off (2
positions, decays of exp(-16)), where ours and their loop agree. So it is measured by the largest entry of any
gradient.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_next import modeling_qwen3_next
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from hooked_ssm.ops import delta_rule

D_KEY, D_VALUE = 6, 5


class _TorchWithWideFloat32:
    """torch as transformers' file sees it, whose float32 is float64."""

    float32 = torch.float64

    def __getattr__(self, name: str):
        return getattr(torch, name)


def arguments(length: int, dtype: torch.dtype, decay: float | None, initial: bool) -> dict[str, Tensor]:
    """Keys and queries of length 1, as the layers have them; `decay` scales the logarithms of the decays."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(2, *shape, generator=generator, dtype=torch.float64)

    given = {
        "q": F.normalize(normal(length, 3, D_KEY), dim=-1),
        "k": F.normalize(normal(length, 3, D_KEY), dim=-1),
        "v": normal(length, 3, D_VALUE),
        "beta": normal(length, 3).sigmoid(),
    }
    if decay is not None:
        given["log_decay"] = -decay * F.softplus(normal(length, 3))
    if initial:
        given["initial"] = normal(3, D_KEY, D_VALUE)
    return {name: x.to(dtype).requires_grad_() for name, x in given.items()}


def theirs(function, given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return function(
        given["q"],
        given["k"],
        given["v"],
        g=given.get("log_decay", torch.zeros_like(given["beta"])),
        beta=given["beta"],
        initial_state=given.get("initial"),
        output_final_state=True,
    )


def ours(given: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return delta_rule(**(given | {"q": given["q"] * D_KEY**-0.5}))


def assert_close(got: Tensor, wanted: Tensor, tolerance: float, scale: float | None = None) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    assert (got - wanted).abs().max() <= tolerance * (largest(wanted) if scale is None else scale)


def largest(x: Tensor) -> float:
    return float(x.detach().abs().max())


@pytest.mark.parametrize("function", [torch_chunk_gated_delta_rule, torch_recurrent_gated_delta_rule])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 5e-5)], ids=["float64", "float32"]
)
@pytest.mark.parametrize("initial", [False, True], ids=["from 0", "from a state"])
@pytest.mark.parametrize("decay", [None, 0.05, 1.0, 16.0])
@pytest.mark.parametrize("length", [1, 2, 31, 63, 64, 65, 101, 130])
def test_reads_last_state_and_every_gradient_agree(
    function, dtype, tolerance, initial, decay, length, monkeypatch
):
    if dtype == torch.float64:
        monkeypatch.setattr(modeling_qwen3_next, "torch", _TorchWithWideFloat32())
    given = arguments(length, dtype, decay, initial)
    wanted, got = theirs(function, given), ours(given)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, dtype=dtype) for x in wanted]
    for a, b in zip(got, wanted, strict=True):
        assert_close(a, b, tolerance)
    grads = [
        torch.autograd.grad(
            sum((x * weight).sum() for x, weight in zip(results, weights, strict=True)), list(given.values())
        )
        for results in (got, wanted)
    ]
    for name, a, b in zip(given, *grads, strict=True):
        cancels = name == "log_decay" and function is torch_chunk_gated_delta_rule
        assert_close(a, b, tolerance, max(map(largest, grads[1])) if cancels else None)
