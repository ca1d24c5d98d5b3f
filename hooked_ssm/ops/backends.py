"""Back ends: by which implementation an operator is computed.

    torch       the reference; everywhere, every dtype, every edit
    numba       compiled, on the CPU
    triton      our kernels: CUDA, or CPU tensors under TRITON_INTERPRET=1
    mamba_ssm   the kernels of mamba-ssm, where it is installed
    fla         the kernels of flash-linear-attention, where it is installed

`auto` takes the first of the operator's list below that can do what is asked, on this device, in this dtype,
with these edits. Another one is named for a block of code (`use_backend`), or for a model (`cfg.backend`; a
block of code wins). A named one that cannot raises BackendError, which names those that can; an operator that
has nothing of that name is left to `auto`. (Kernels of other packages are for what is not hooked: where
`auto` takes one, a hook changes the back end, and with it the rounding. A back end that is named stays.)

## What an implementation is

A row in IMPLEMENTATIONS: the back end's name and "module:attribute", imported when it is first called. Except
for `linear_scan`, it is a function with the operator's own signature, without checks of shapes, which are
done. Tensors come as the caller gave them, of mixed dtypes perhaps, not contiguous perhaps; `call.dtype`
(their common one, at least float32) is what is computed in, and results have the dtypes that the operator's
docstring says (the read that of the values, the last state `call.dtype`): `in_one_dtype` casts. It is

- differentiable once in every tensor argument (a mask, a length or a chunk is none) and in what edits return;
- deterministic, and independent of the number of threads;
- unchanged by looking: with edits that return None, or the tensor unchanged, outputs are bit for bit what
  this back end computes without edits.

Edits are `edit_decay`, `edit_write` and `edit_state`, None or a function. Each is called once, in this
order, with a fresh dense tensor [batch, pos, ...] (any strides) that it may write into, and returns a tensor,
None (what it was handed, as it then is) or, for a trajectory, a `StateEdit`: `state_edit.check_edited`
refuses what cannot stand in. What comes back is computed with from there on. For which entries count as set,
and for gradients (total, through all later states), see `state_edit.scan_with_edits` and, for the delta rule,
whose writes are a trajectory too, `trajectory_edit`. An edit that is an `At` asks for some positions alone:
called like any other it works by itself; an implementation that can emit these and no others reads
`.positions`, and hands `.edit` a tensor [batch, len(positions), ...].

An implementation of `linear_scan` is a `linear_scan.LinearScan`: two functions of numbers, without graph; the
graph around them, `scan_with_edits` included, is shared.

`cannot(call)` says why a row cannot do what is asked, as an end of "the back end ... cannot run here: ", or
None; it must be quick and import nothing heavy. A row whose `auto` is false for a call is taken by name only.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Call(NamedTuple):
    """What an operator is asked for.

    inputs: its tensors by argument name, as given. edits: those given, by name: "decay", "write", "state".
    dtype: what is computed in.
    """

    operator: str
    inputs: Mapping[str, Tensor]
    edits: Mapping[str, Callable[[Tensor], object]]
    dtype: torch.dtype

    @property
    def device(self) -> torch.device:
        return next(iter(self.inputs.values())).device


class Row(NamedTuple):
    """One implementation; see the module docstring."""

    backend: str
    where: str
    cannot: Callable[[Call], str | None] = lambda call: None
    auto: Callable[[Call], bool] = lambda call: True


class BackendError(RuntimeError):
    """The back end that was named cannot do what is asked."""


def no_edits(call: Call) -> str | None:
    """For rows that honour no edit."""
    return f"it has no form with hooks on {', '.join(call.edits)}" if call.edits else None


def _on_cuda(call: Call) -> bool:
    return call.device.type == "cuda"


def _single_on_cuda(call: Call) -> bool:
    return _on_cuda(call) and call.dtype == torch.float32


def _rounded_on_cuda(call: Call) -> bool:
    """For kernels whose products are in tf32 at best: with half precision, or where torch's may be too."""
    half = all(call.inputs[name].element_size() == 2 for name in "qkv")
    return _single_on_cuda(call) and (half or torch.get_float32_matmul_precision() != "highest")


def _asking(where: str) -> Callable[[Call], str | None]:
    """`cannot` of a row as the module says that has its implementation."""
    return lambda call: load(where)(call)


def _half_or_complex(call: Call) -> str | None:
    dtypes = {tensor.dtype for tensor in call.inputs.values()} - {torch.float32, torch.float64}
    return f"it has no {dtypes.pop()}" if dtypes else None


MOST_KEYS = 256  # of the delta rule in Triton


def _too_many_keys(call: Call) -> str | None:
    d_key = call.inputs["k"].shape[-1]
    fits = d_key <= MOST_KEYS
    return None if fits else f"it holds whole columns of a state, d_key up to {MOST_KEYS}, got {d_key}"


def _decays_by_channel(call: Call) -> str | None:
    decay = call.inputs.get("log_decay")
    return "it has decays by head, not by channel" if decay is not None and decay.ndim == 4 else None


OPS, COMPILED = "hooked_ssm.ops", "hooked_ssm.ops.compiled"
IMPLEMENTATIONS: dict[str, list[Row]] = {
    "selective_scan": [
        Row(
            *("mamba_ssm", f"{OPS}.mamba_ssm_scan:mamba_ssm_selective_scan"),
            _asking(f"{OPS}.mamba_ssm_scan:cannot"),
        ),
        Row("triton", f"{OPS}.triton.selective_scan:triton_selective_scan", auto=_on_cuda),
        Row("numba", f"{COMPILED}.selective_scan:numba_selective_scan"),
        Row("torch", f"{OPS}.selective_scan:torch_selective_scan"),
    ],
    "mamba_step": [
        Row("numba", f"{COMPILED}.mamba_step:numba_mamba_step"),
        Row("torch", f"{OPS}.mamba_step:torch_mamba_step"),
    ],
    "linear_scan": [
        Row("numba", f"{COMPILED}.linear_scan:NUMBA"),
        Row("torch", f"{OPS}.linear_scan:TORCH"),
    ],
    "linear_attention": [
        Row(
            *("mamba_ssm", f"{OPS}.mamba_ssm_ssd:mamba_ssm_linear_attention"),
            *(_asking(f"{OPS}.mamba_ssm_ssd:cannot"), _rounded_on_cuda),
        ),
        Row(
            *("fla", f"{OPS}.fla_kernels:fla_linear_attention"),
            *(_asking(f"{OPS}.fla_kernels:cannot"), _rounded_on_cuda),
        ),
        Row(
            *("triton", f"{OPS}.triton.linear_attention:triton_linear_attention"),
            *(_decays_by_channel, _single_on_cuda),
        ),
        Row("torch", f"{OPS}.linear_attention:torch_linear_attention"),
    ],
    "delta_rule": [
        Row(
            *("fla", f"{OPS}.fla_kernels:fla_delta_rule"),
            *(_asking(f"{OPS}.fla_kernels:cannot"), _rounded_on_cuda),
        ),
        Row("triton", f"{OPS}.triton.delta_rule:triton_delta_rule", _too_many_keys, _single_on_cuda),
        Row("numba", f"{COMPILED}.delta_rule:numba_delta_rule"),
        Row("torch", f"{OPS}.delta_rule:torch_delta_rule"),
    ],
    "matrix_product": [
        Row("numba", f"{COMPILED}.matrix_product:numba_matrix_product", _half_or_complex),
        Row("torch", f"{OPS}.memory:torch_matrix_product"),
    ],
    "rms_norm": [
        Row("numba", f"{COMPILED}.rms_norm:numba_rms_norm", _half_or_complex),
        Row("torch", f"{OPS}.rms_norm:torch_rms_norm"),
    ],
    "depthwise_conv": [
        Row("triton", f"{OPS}.triton.depthwise_conv:triton_depthwise_conv", auto=_on_cuda),
        Row("numba", f"{COMPILED}.depthwise_conv:numba_depthwise_conv"),
        Row("torch", f"{OPS}.depthwise_conv:torch_depthwise_conv"),
    ],
}


@cache
def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _numba(call: Call) -> str | None:
    if not _installed("numba"):
        return "numba is not installed"
    if call.device.type != "cpu":
        return f"numba's are for the CPU, the tensors are on {call.device}"
    if call.dtype not in (torch.float32, torch.float64, torch.complex64, torch.complex128):
        return f"numba has no {call.dtype}"
    if _traced() or any(type(tensor) not in PLAIN for tensor in call.inputs.values()):
        return "it needs tensors with memory, and torch.compile and torch.func cannot look into it"
    return None


PLAIN = Tensor, torch.nn.Parameter


def is_plain(tensor: Tensor) -> bool:
    """Whether this is a tensor with memory of its own, and not one that is being traced or transformed."""
    return type(tensor) in PLAIN and not _traced()


def _traced() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _triton(call: Call) -> str | None:
    if not _installed("triton"):
        return "triton is not installed"
    interpreted = call.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if call.device.type != "cuda" and not interpreted:
        return f"the tensors are on {call.device}: triton needs CUDA (or the CPU and TRITON_INTERPRET=1)"
    return None


def _mamba_ssm(call: Call) -> str | None:
    return _kernels_of("mamba_ssm", "mamba_ssm", call)


def _fla(call: Call) -> str | None:
    return _kernels_of("fla", "flash-linear-attention", call)


def _kernels_of(module: str, package: str, call: Call) -> str | None:
    if not _installed(module):
        return f"{package} is not installed"
    return None if _on_cuda(call) else f"{package} needs CUDA, the tensors are on {call.device}"


# What keeps a whole back end from a call.
BACKENDS: dict[str, Callable[[Call], str | None]] = {
    "torch": lambda call: None,
    "numba": _numba,
    "triton": _triton,
    "mamba_ssm": _mamba_ssm,
    "fla": _fla,
}
AUTO = "auto"

_named: ContextVar[str | None] = ContextVar("named back end", default=None)
_of_model: ContextVar[str] = ContextVar("back end of the model that runs", default=AUTO)


def check_backend(name: str) -> str:
    """The name, if there is a back end of that name, or "auto". Raises ValueError otherwise."""
    if name not in (AUTO, *BACKENDS):
        raise ValueError(f"a back end must be one of {[AUTO, *BACKENDS]}, got {name!r}.")
    return name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Every operator called inside, in this thread, runs on this back end, gradients included.

    "auto" lets each call choose, whatever the model or a block around this one says. Raises ValueError for an
    unknown name here, and BackendError where an operator is called that the back end cannot run.
    """
    token = _named.set(check_backend(name))
    try:
        yield
    finally:
        _named.reset(token)


@contextmanager
def backend_of_model(name: str) -> Iterator[None]:
    """The same, but for `use_backend`, inside which this changes nothing."""
    token = _of_model.set(name)
    try:
        yield
    finally:
        _of_model.reset(token)


def call_of(operator: str, inputs: Mapping[str, Tensor | None], **edits: Any) -> Call:
    """What is asked for: of `inputs` and `edits` those that are not None."""
    given = {name: tensor for name, tensor in inputs.items() if tensor is not None}
    edits = {name: edit for name, edit in edits.items() if edit is not None}
    return Call(operator, given, edits, common_dtype(given.values()))


def implementation(call: Call) -> Any:
    """What to compute this call with. Raises BackendError if the back end that is named cannot."""
    rows = IMPLEMENTATIONS[call.operator]
    name = _named.get() or _of_model.get()
    for row in rows:
        if name != AUTO and row.backend == name:
            reason = why_not(row, call)
            if reason is None:
                return load(row.where)
            raise BackendError(
                f"the back end {name!r} cannot run {call.operator} here: {reason}. "
                f"Those that can: {', '.join(map(repr, able(call)))}."
            )
    return load(next(row for row in rows if row.auto(call) and why_not(row, call) is None).where)


def why_not(row: Row, call: Call) -> str | None:
    """Why this row cannot do what is asked; None if it can."""
    return BACKENDS[row.backend](call) or row.cannot(call)


def able(call: Call) -> list[str]:
    """The back ends that can do what is asked, by preference."""
    return [row.backend for row in IMPLEMENTATIONS[call.operator] if why_not(row, call) is None]


@cache
def load(where: str) -> Any:
    module, attribute = where.split(":")
    return getattr(importlib.import_module(module), attribute)


def common_dtype(tensors: Iterable[Tensor | None]) -> torch.dtype:
    """What tensors of these dtypes, or None, are computed in: at least float32."""
    dtypes = {tensor.dtype for tensor in tensors if tensor is not None}
    return reduce(torch.promote_types, dtypes, torch.float32)


def in_one_dtype(*tensors: Tensor | None) -> list[Any]:
    """The tensors in the dtype that they are computed in, and None for None."""
    dtype = common_dtype(tensors)
    return [tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype) for tensor in tensors]
