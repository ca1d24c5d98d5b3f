"""The kernels compile for a Hopper GPU, which needs none: as far as a machine without one can tell."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import inspect, re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from hooked_ssm.ops.triton import depthwise_conv, scan_backward, scan_forward, scan_parts

SLOTS = {name: "*i32" for name in ("decay_slot", "write_slot", "set_slot", "state_slot", "total_slot")}
NUMBERS = r"(length|channels|n_\\w+|first|rows|(x|dt|A|B|C|initial|weight)_[btdni])$"


def compile(kernel, dtype, **constants):
    signature = {}
    for name in kernel.arg_names:
        if name in constants:
            signature[name] = "constexpr"
        elif re.match(NUMBERS, name):
            signature[name] = "i32"
        else:
            signature[name] = {"is_set": "*i1", **SLOTS}.get(name, dtype)
    places = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(fn=kernel, signature=signature, constexprs=places)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert len(compiled.asm["cubin"]) > 0


single = {"T": 64, "D": 16, "N": 16, "ACC": tl.float32}
compile(scan_forward.forward, "*bf16", **single)
compile(scan_backward.backward, "*fp32", B_EACH=True, C_EACH=True, STOP=True, **single)
compile(scan_parts.make_write, "*bf16", EACH=False, R=16, D=64, ACC=tl.float32)
compile(depthwise_conv.forward, "*bf16", TAPS=4, T=32, D=64, ACC=tl.float32)
compile(depthwise_conv.backward, "*fp32", TAPS=4, T=32, D=64, ACC=tl.float32)
"""


@pytest.mark.slow
def test_the_kernels_compile(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "TRITON_DEFAULT_FP_FUSION": "1"}
    subprocess.run([sys.executable, "-c", COMPILE], check=True, env=environment)
