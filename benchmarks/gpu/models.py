"""Mixers of the zoo against their peers' layers, and training steps at the paper's sizes.

A peer has our weights' shapes, or what its package makes of the same width: what is compared is time.
"""

import importlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.gpu.measuring import device_ms, elapsed
from benchmarks.gpu.rows import Row
from experiments.gpu_training import GraphReadyStep
from experiments.runs import TrainConfig
from hooked_ssm import HookedSSM, zoo
from tasks import AssociativeRecall, Task

PRESETS = [name for name in zoo.PRESETS if name != "hybrid"]
SIZES = ((32, 36, 64), (4, 2048, 1024))
CASES = ("forward", "forward and backward", "states at one position", "all states")
ARCHITECTURES = ("attention", "base_conv", "based", "h3", "hyena", "mamba", "delta_net")  # the paper's
WIDTHS = (16, 32, 64, 128, 256)
RATES, STEPS = 7, 50_016
AT_ONCE = 8
STATE = "hook_ssm_state"


class TorchAttention(nn.Module):
    """PyTorch's own attention, one causal head."""

    def __init__(self, d_model: int):
        super().__init__()
        self.W_QKV, self.W_O = nn.Linear(d_model, 3 * d_model, bias=False), nn.Linear(d_model, d_model)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.W_QKV(x).unsqueeze(1).chunk(3, dim=-1)
        return self.W_O(nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1))


def layer(module: str, name: str, **options: Callable[[int], Any]) -> Callable[[int], nn.Module]:
    return lambda d_model: getattr(importlib.import_module(module), name)(
        **{key: value(d_model) for key, value in options.items()}
    )


PEERS: dict[str, tuple[str, Callable[[int], nn.Module]]] = {
    "attention": ("torch", TorchAttention),
    "mamba": ("mamba_ssm", layer("mamba_ssm", "Mamba", d_model=lambda d: d)),
    "mamba2": (
        "mamba_ssm",
        layer("mamba_ssm", "Mamba2", d_model=lambda d: d, headdim=lambda d: min(64, 2 * d)),
    ),
    "delta_net": (
        "fla",
        layer("fla.layers", "DeltaNet", hidden_size=lambda d: d, num_heads=lambda d: max(1, d // 64)),
    ),
    "gated_delta_net": (
        "fla",
        layer(
            "fla.layers", "GatedDeltaNet", hidden_size=lambda d: d, num_heads=lambda d: max(1, d // 64),
            head_dim=lambda d: min(64, d),
        ),
    ),
    "gla": (
        "fla",
        layer(
            "fla.layers", "GatedLinearAttention", hidden_size=lambda d: d, num_heads=lambda d: max(1, d // 64)
        ),
    ),
    "based": (
        "fla",
        layer("fla.layers", "BasedLinearAttention", hidden_size=lambda d: d),
    ),
}  # fmt: skip


def cases(preset: str) -> tuple[str, ...]:
    model = HookedSSM(zoo.PRESETS[preset](d_model=64, n_layers=2, d_vocab=2, device="cpu"))
    if STATE not in last_mixer(model)._modules:
        return CASES[:2]
    # A hook of H3's states carries them all.
    return tuple(case for case in CASES if (preset, case) != ("h3", CASES[2]))


def last_mixer(model: HookedSSM) -> Any:
    return model.blocks[-1].mixer


def planned() -> list[Row]:
    rows = [
        Row(f"mixer: {preset}", mixer_label(size), case, peer=named_peer(preset, case))
        for preset in PRESETS
        for size in SIZES
        for case in cases(preset)
    ]
    return rows + [
        Row(f"training: {preset}", training_label(width), case, peer="op by op", unit="steps/s")
        for preset in ARCHITECTURES
        for width in WIDTHS
        for case in training_cases()
    ]


def named_peer(preset: str, case: str) -> str:
    return "idle" if case in CASES[2:] else PEERS[preset][0] if preset in PEERS else ""


def mixer_label(size: tuple[int, int, int]) -> str:
    return f"{'x'.join(map(str, size))}, float32"


def training_label(width: int) -> str:
    return f"d_model {width}"


def training_cases() -> tuple[str, str]:
    return "one run", f"{AT_ONCE} runs at a time, together"


def measured_mixer(preset: str, size: tuple[int, int, int], device: str) -> list[Row]:
    batch, pos, d_model = size
    cfg = zoo.PRESETS[preset](d_model=d_model, n_layers=2, d_vocab=2, n_ctx=pos, device=device, seed=0)
    ours = last_mixer(HookedSSM(cfg))
    peer, make = PEERS.get(preset, ("", None))
    modules: dict[str, nn.Module] = {"ours": ours}
    if make is not None and importlib.util.find_spec(peer) and device == "cuda":
        modules[peer] = make(d_model).to(device)
    u = torch.randn(batch, pos, d_model, device=device, requires_grad=True)

    def output(module: nn.Module) -> Tensor:
        out = module(u)
        return out if isinstance(out, Tensor) else out[0]

    def train(module: nn.Module) -> Callable[[], Any]:
        wrt = [u, *(p for p in module.parameters() if p.requires_grad)]
        grad = torch.randn_like(u)
        return lambda: torch.autograd.grad(output(module), wrt, grad, allow_unused=True)

    with torch.no_grad():
        forward = device_ms({name: lambda m=module: output(m) for name, module in modules.items()})
    training = device_ms({name: train(module) for name, module in modules.items()})
    rows = [
        Row(f"mixer: {preset}", mixer_label(size), case, "auto", times["ours"], peer, times.get(peer))
        for case, times in zip(CASES, (forward, training))
    ]
    for case in cases(preset)[2:]:
        with looking(ours, [pos // 2] if case == CASES[2] else None), torch.no_grad():
            hooked = device_ms({case: lambda: output(ours)})[case]
        rows.append(Row(f"mixer: {preset}", mixer_label(size), case, "auto", hooked, "idle", forward["ours"]))
    return rows


@contextmanager
def looking(mixer: Any, positions: list[int] | None) -> Iterator[None]:
    """Something looks at the states inside, at these positions or all."""
    hook = mixer._modules[STATE]
    handle = hook.register_forward_hook(lambda module, inputs, output: None)
    with ExitStack() as stack:
        stack.callback(handle.remove)
        if positions is not None:
            stack.enter_context(hook.only(positions))
        yield


def training_step(preset: str, width: int, device: str, task: Task | None = None) -> GraphReadyStep:
    """A step on the paper's associative recall; or on a smaller task."""
    recall = task or AssociativeRecall()
    sizes = {"d_model": width, "n_layers": 2, "d_vocab": recall.d_vocab}
    model = zoo.paper.PRESETS[preset](**sizes, device=device, seed=0)
    # As many different documents as a run takes from one block; the paper's training set has no more effect.
    cfg = TrainConfig(task=recall, model=model, steps=STEPS, lr=1e-3, n_train=128 * 32)
    step = GraphReadyStep(cfg, HookedSSM(model))
    step.begin(0)
    return step


def measured_training(preset: str, width: int, device: str, task: Task | None = None) -> list[Row]:
    """Steps a second of one run, captured, and op by op; and of several runs together."""
    steps = [training_step(preset, width, device, task) for _ in range(AT_ONCE)]
    eager = training_step(preset, width, device, task)
    eager.capturable = False
    for step in (*steps, eager):
        step()
    if not all(math.isfinite(step.loss.item()) for step in steps):
        raise ArithmeticError(f"the loss of {preset} is {steps[0].loss.item()} after one step.")

    def rate(some: list[GraphReadyStep], repeats: int) -> float:
        def round_of_all() -> None:
            for step in some:
                step()
            for stream in [step.stream for step in some if step.stream is not None]:
                torch.cuda.current_stream().wait_stream(stream)

        return 1000 * len(some) / elapsed(round_of_all, repeats)

    alone, together = rate(steps[:1], 300), rate(steps, 100)
    by_op = rate([eager], 50)
    what, size = f"training: {preset}", training_label(width)
    backend = "graph" if steps[0].graph is not None else "op by op"
    return [
        Row(what, size, case, backend, ours, "op by op", by_op, unit="steps/s")
        for case, ours in zip(training_cases(), (alone, together))
    ]


def grid_hours(rows: list[Row]) -> float | None:
    """Hours that the paper's associative recall would take, at the measured steps a second of several runs
    together: 7 architectures, 5 widths, 7 learning rates, 50,016 steps. None if any was not measured."""
    together = {(r.what, r.size): r.ours for r in rows if r.case == training_cases()[1]}
    seconds = 0.0
    for preset in ARCHITECTURES:
        for width in WIDTHS:
            rate = together.get((f"training: {preset}", training_label(width)))
            if rate is None:
                return None
            seconds += RATES * STEPS / rate
    return seconds / 3600
