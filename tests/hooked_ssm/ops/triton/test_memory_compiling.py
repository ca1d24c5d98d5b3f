"""The kernels of the matrix memories compile for a Hopper GPU, as far as a machine without one can tell."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hooked_ssm.ops.triton import chunk_backward as back, chunk_forward as forth

NUMBERS = {"L", "H", "G", "n_chunks", "n_states", "n_writes", "n_slots"}
PLACES = {"bounds", "state_slot", "write_slot", "run_chunk", "run_first", "run_last", "slots"}
GIVEN = {"q", "k", "v", "o", "do"}  # in half precision
MASKS = {"state_mask", "write_mask"}
SIZES = dict(DK=20, DV=16, C=16, LOG=4, BV=16, DT=tl.float32, PRECISION="tf32x3", SOLVE="tf32x3")


def compile(kernel, BK=16, without=()):
    constants = {name: value for name, value in {**SIZES, "BK": BK}.items() if name in kernel.arg_names}
    constants |= dict.fromkeys(set(without) & set(kernel.arg_names))
    kinds = dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(PLACES, "*i32") | dict.fromkeys(MASKS, "*i8")
    kinds |= dict.fromkeys(GIVEN, "*bf16") | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "*fp32") for name in kernel.arg_names}
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=GPUTarget("cuda", 90, 32))
    assert len(compiled.asm["cubin"]) > 0 and compiled.metadata.shared < 227 * 1024


rule = {"beta", "T_in", "W_in", "Y_out", "dv"}
write_edits = {"write_slot", "write_values", "write_mask", "write_total"}
state_edits = {"state_slot", "state_values", "state_mask", "state_added", "added", "set_total"}
compile(forth.writes_alone)
for kernel in (forth.chunk_states, back.chunk_state_gradients):
    compile(kernel, BK=32)
    compile(kernel, BK=32, without=write_edits | state_edits)
    compile(kernel, without=rule | write_edits)
for kernel in (forth.chunk_reads, forth.emit_states, back.chunk_write_gradients, back.emit_gradients):
    compile(kernel)
compile(back.chunk_input_gradients)
compile(back.chunk_input_gradients, without=(rule - {"dv"}) | {"dbeta", "decay", "ddecay"})
compile(back.emit_gradients, without={"dv", "decay"})
"""


@pytest.mark.slow
def test_the_kernels_compile(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
