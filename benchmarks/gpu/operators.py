"""The operators, each with the peers that do the same work, in the argument order of ours."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from hooked_ssm.ops import delta_rule, linear_attention, selective_scan
from hooked_ssm.ops.depthwise_conv import depthwise_conv

Inputs = dict[str, Tensor]


Size = tuple[int, int, int]  # batch x positions x width


@dataclass(frozen=True)
class Operator:
    """operator: its name in `ops.backends`. make: inputs of a size, by argument name. run: ours.

    peers: the packages that have it, given our inputs. state: the shape of one document's state, if there is
    one to be seen. single: inputs that stay in float32 whatever the dtype. tiny: a size for an interpreter.
    """

    name: str
    operator: str
    make: Callable[..., Inputs]
    run: Callable[..., Any]
    peers: Mapping[str, Callable[[Inputs], Tensor]]
    dtype: torch.dtype
    sizes: tuple[Size, ...]
    tiny: Size
    state: Callable[[Inputs], Sequence[int]] | None = None
    single: tuple[str, ...] = ()

    def label(self, size: Size) -> str:
        return f"{'x'.join(map(str, size))}, {str(self.dtype).removeprefix('torch.')}"

    def inputs(self, size: Size, device: str) -> Inputs:
        made = {}
        for name, tensor in self.make(*size).items():
            dtype = torch.float32 if name in self.single else self.dtype
            made[name] = tensor.to(device, dtype).requires_grad_()
        return made

    def output(self, given: Inputs) -> Tensor:
        out = self.run(**given)
        return out if isinstance(out, Tensor) else out[0]

    def positions(self, given: Inputs) -> int:
        return next(iter(given.values())).shape[1]

    def state_size(self, given: Inputs) -> int:
        return math.prod(self.state(given)) if self.state else 0

    def installed_peers(self) -> dict[str, Callable[[Inputs], Tensor]]:
        return {name: call for name, call in self.peers.items() if importlib.util.find_spec(name)}


def scan_inputs(batch: int, pos: int, width: int, d_state: int = 16) -> Inputs:
    """As a Mamba layer has them: dt between 0.001 and 0.1, A = -1 ... -d_state."""
    x, dt = torch.randn(batch, pos, width), torch.empty(batch, pos, width).uniform_(0.001, 0.1)
    A = -torch.arange(1.0, d_state + 1).repeat(width, 1)
    B, C = (torch.randn(batch, pos, d_state) for _ in range(2))
    return {"x": x, "dt": dt, "A": A, "B": B, "C": C}


def conv_inputs(batch: int, pos: int, width: int, taps: int = 4) -> Inputs:
    return {
        "x": torch.randn(batch, pos + taps - 1, width),
        "weight": torch.randn(width, 1, taps) / 2,
        "bias": torch.randn(width),
    }


def head_inputs(batch: int, pos: int, width: int, *, heads_of: int = 64, beta: bool, decay: str) -> Inputs:
    """q, k, v by head, unit-norm q and k; heads of at most `heads_of`."""
    d = min(heads_of, width)
    q, k, v = (torch.randn(batch, pos, width // d, d) for _ in range(3))
    inputs = {"q": F.normalize(q, dim=-1) * d**-0.5, "k": F.normalize(k, dim=-1), "v": v}
    if beta:
        inputs["beta"] = torch.rand(batch, pos, width // d)
    if decay == "head":
        inputs["log_decay"] = -0.1 * torch.rand(batch, pos, width // d)
    elif decay == "channel":
        inputs["log_decay"] = -0.1 * torch.rand(batch, pos, width // d, d)
    return inputs


def mamba_ssm_scan(given: Inputs) -> Tensor:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn  # pyright: ignore

    x, dt, B, C = (given[name].transpose(1, 2) for name in ("x", "dt", "B", "C"))
    return selective_scan_fn(x, dt, given["A"], B, C).transpose(1, 2)


def mamba_ssm_ssd(given: Inputs) -> Tensor:
    """Its decay is exp(dt A), and dt a factor on what is written too: divided out, which costs little."""
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined  # pyright: ignore

    dt = -given["log_decay"]
    x = given["v"] / dt.unsqueeze(-1).to(given["v"].dtype)
    return mamba_chunk_scan_combined(x, dt, -torch.ones_like(dt[0, 0]), given["k"], given["q"], chunk_size=64)


def causal_conv1d(given: Inputs) -> Tensor:
    from causal_conv1d import causal_conv1d_fn  # pyright: ignore

    x, taps = given["x"].transpose(1, 2), given["weight"].shape[2]
    return causal_conv1d_fn(x, given["weight"][:, 0], given["bias"]).transpose(1, 2)[:, taps - 1 :]


def fla(module: str, name: str, **renamed: str) -> Callable[[Inputs], Tensor]:
    """A function of fla that takes our inputs under its names; q is scaled already."""

    def call(given: Inputs) -> Tensor:
        function = getattr(importlib.import_module(f"fla.ops.{module}"), name)
        return function(**{renamed.get(key, key): tensor for key, tensor in given.items()}, scale=1.0)[0]

    return call


def key_by_value(given: Inputs) -> tuple[int, ...]:
    return (*given["k"].shape[2:], given["v"].shape[3])


OPERATORS = (
    Operator(
        "selective scan",
        "selective_scan",
        scan_inputs,
        selective_scan,
        {"mamba_ssm": mamba_ssm_scan},
        torch.float32,
        ((32, 36, 128), (32, 36, 512), (4, 2048, 1536)),
        (1, 5, 3),
        lambda given: tuple(given["A"].shape),
        ("A",),
    ),
    Operator(
        "short convolution",
        "depthwise_conv",
        conv_inputs,
        depthwise_conv,
        {"causal_conv1d": causal_conv1d},
        torch.float32,
        ((32, 36, 128), (4, 2048, 1536)),
        (1, 5, 3),
    ),
    Operator(
        "linear attention, decay a head (SSD)",
        "linear_attention",
        lambda *size: head_inputs(*size, beta=False, decay="head"),
        linear_attention,
        {"fla": fla("simple_gla", "chunk_simple_gla", log_decay="g"), "mamba_ssm": mamba_ssm_ssd},
        torch.bfloat16,
        ((32, 36, 128), (4, 2048, 1024)),
        (1, 5, 4),
        key_by_value,
        ("log_decay",),
    ),
    Operator(
        "linear attention, decay a channel (GLA)",
        "linear_attention",
        lambda *size: head_inputs(*size, beta=False, decay="channel"),
        linear_attention,
        {"fla": fla("gla", "chunk_gla", log_decay="g")},
        torch.bfloat16,
        ((32, 36, 128), (4, 2048, 1024)),
        (1, 5, 4),
        key_by_value,
        ("log_decay",),
    ),
    Operator(
        "delta rule",
        "delta_rule",
        lambda *size: head_inputs(*size, beta=True, decay=""),
        delta_rule,
        {"fla": fla("delta_rule", "chunk_delta_rule")},
        torch.bfloat16,
        ((32, 36, 128), (4, 2048, 1024)),
        (1, 5, 4),
        key_by_value,
    ),
    Operator(
        "gated delta rule",
        "delta_rule",
        lambda *size: head_inputs(*size, beta=True, decay="head"),
        delta_rule,
        {"fla": fla("gated_delta_rule", "chunk_gated_delta_rule", log_decay="g")},
        torch.bfloat16,
        ((32, 36, 128), (4, 2048, 1024)),
        (1, 5, 4),
        key_by_value,
        ("log_decay",),
    ),
)

# In float32 Triton may multiply on tensor cores (tf32); bfloat16 rounds every input and output once.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 2e-2}
