"""The operators checked against the reference in float64, and timed."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.measuring import device_ms, n_bytes, relative_error
from benchmarks.gpu.operators import OPERATORS, Inputs, Operator, Size
from benchmarks.gpu.rows import Row
from hooked_ssm.ops import At, backends, use_backend

CASES = ("forward", "forward and backward", "states at one position", "all states")


def cases(operator: Operator) -> tuple[str, ...]:
    return CASES if operator.state else CASES[:2]


def planned() -> list[Row]:
    """The rows as they are without a GPU."""
    return [
        Row(operator.name, operator.label(size), case, peer=named_peers(operator, case))
        for operator in OPERATORS
        for size in operator.sizes
        for case in cases(operator)
    ]


def named_peers(operator: Operator, case: str) -> str:
    return "idle" if case in CASES[2:] else ", ".join(operator.peers)


def backend_of(operator: Operator, inputs: Inputs, **edits: Any) -> str:
    """What is ours, whatever `auto` would take of the peers': Triton where it can, on a CPU interpreted."""
    call = backends.call_of(operator.operator, inputs, **edits)
    return "triton" if "triton" in backends.able(call) else "torch"


def check(operator: Operator, size: Size, device: str) -> tuple[str, dict[str, float]]:
    """The back end, and relative errors of ours and of the peers' there are: the largest over the output, the
    states that a hook sees, and all gradients."""
    inputs = operator.inputs(size, device)
    doubles = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    with use_backend("torch"):
        want = results(operator.output, doubles)
    backend = backend_of(operator, inputs)
    with use_backend(backend):
        errors = {"ours": worst(results(operator.output, inputs), want)}
    if operator.state:
        errors["ours"] = max(errors["ours"], check_states(operator, inputs, doubles))
    for name, peer in operator.installed_peers().items() if device == "cuda" else ():
        errors[name] = worst(results(peer, inputs), want)
    return backend, errors


def results(run: Callable[[Inputs], Tensor], inputs: Inputs) -> list[Tensor]:
    """The output, and the gradients of a loss on it that is the same in every dtype."""
    out = run(inputs)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(out.shape, generator=generator).bfloat16().to(out)
    return [out, *torch.autograd.grad(out, list(inputs.values()), grad)]


def worst(got: list[Tensor], want: list[Tensor]) -> float:
    return max(relative_error(one, other) for one, other in zip(got, want, strict=True))


@torch.no_grad()
def check_states(operator: Operator, inputs: Inputs, doubles: Inputs) -> float:
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        return lambda states: seen.update({name: states.clone()})

    position = operator.positions(inputs) // 2
    with use_backend("torch"):
        operator.run(**doubles, edit_state=keep("wanted"))
    with use_backend(backend_of(operator, inputs, state=keep)):
        operator.run(**inputs, edit_state=keep("all"))
        operator.run(**inputs, edit_state=At([position], keep("one")))
    wanted = seen["wanted"]
    return max(relative_error(seen["all"], wanted), relative_error(seen["one"], wanted[:, [position]]))


def measured(operator: Operator, size: Size, bandwidth: float, device: str) -> list[Row]:
    """The rows of one operator at one size; `bandwidth` of a copy, in bytes a millisecond."""
    backend, errors = check(operator, size, device)
    with use_backend(backend):
        return timed(operator, size, bandwidth, device, backend, errors)


def timed(
    operator: Operator, size: Size, bandwidth: float, device: str, backend: str, errors: dict[str, float]
) -> list[Row]:
    inputs = operator.inputs(size, device)
    detached = {name: t.detach() for name, t in inputs.items()}
    peers = operator.installed_peers() if device == "cuda" else {}
    out = operator.output(detached)

    def train(run: Callable[[Inputs], Tensor]) -> Callable[[], Any]:
        grad = torch.randn_like(out)
        return lambda: torch.autograd.grad(run(inputs), list(inputs.values()), grad)

    forward = device_ms(
        {"ours": lambda: operator.output(detached)}
        | {name: lambda peer=peer: peer(detached) for name, peer in peers.items()}
    )
    training = device_ms(
        {"ours": train(operator.output)} | {name: train(peer) for name, peer in peers.items()}
    )
    least = n_bytes(*detached.values(), out)
    peer = min(peers, key=lambda name: forward[name], default="")  # the fastest
    rows = [
        Row(operator.name, operator.label(size), case, backend, times["ours"], peer, times.get(peer))
        for case, times in zip(CASES, (forward, training))
    ]
    rows[0].bandwidth = least / bandwidth / forward["ours"]
    # Backward reads the inputs again and the output's gradient, and writes a gradient of every input.
    rows[1].bandwidth = (2 * least + n_bytes(*detached.values())) / bandwidth / training["ours"]
    for row in rows:
        row.error = max(errors.values())
    if operator.state is None:
        return rows
    position = operator.positions(inputs) // 2
    look: Callable[[Tensor], None] = lambda states: None
    hooked = device_ms(
        {
            CASES[2]: lambda: operator.run(**detached, edit_state=At([position], look)),
            CASES[3]: lambda: operator.run(**detached, edit_state=look),
        }
    )
    one = 4 * out.shape[0] * operator.state_size(detached)  # bytes, in float32
    backend = backend_of(operator, detached, state=look)
    for case, states in ((CASES[2], one), (CASES[3], one * operator.positions(inputs))):
        row = Row(operator.name, operator.label(size), case, backend, hooked[case], "idle", forward["ours"])
        row.bandwidth = (least + states) / bandwidth / hooked[case]
        row.error = max(errors.values())
        rows.append(row)
    return rows
