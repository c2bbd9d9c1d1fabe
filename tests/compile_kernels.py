"""Compile the Triton kernels for a GPU that need not be there, as their callers launch them; print what each takes.

python -m tests.compile_kernels [--capability 90] [--tokens 1,7] [--loops] [QUANT ...]
A line of JSON a kernel: name, type, tokens, registers, bytes of stack (spilled registers), shared memory; with --loops
the instructions of all and of its longest loop. No device is used: launches are caught, and go to ptxas.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from core.kernels.gpu import layer as gpu_layer
from core.kernels.gpu import products as gpu_products
from core.kernels.gpu import statistics as gpu_statistics
from core.kernels.gpu.planes import LAYOUTS, to_planes
from tests.support.random_weights import random_weight

TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.float16: "fp16", torch.bfloat16: "bf16",
         torch.int8: "i8", torch.uint8: "u8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64"}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SIZES = (1, 7, 32, 512)  # numbers of tokens
CALLS: list[tuple[JITFunction, tuple[Any, ...], dict[str, Any]]] = []


def catch(kernel: JITFunction, *args: object, grid: object, warmup: bool, **options: object) -> None:
    """Stand in for a launch: remember it."""
    CALLS.append((kernel, args, options))


def launches(
    quants: list[str], sizes: tuple[int, ...] = SIZES
) -> Iterator[tuple[str, int, JITFunction, tuple[Any, ...], dict[str, Any]]]:
    """Call what the forward calls, for each type and some numbers of tokens; nothing runs."""
    JITFunction.run = catch
    for quant in quants:
        planes = to_planes(random_weight(quant, 64, 512), torch.device("cpu"))
        for tokens, dtype in (*((n, torch.float32) for n in sizes), *((n, torch.bfloat16) for n in sizes if n > 32)):
            x = torch.zeros((tokens, 512), dtype=dtype)
            digits = gpu_products.is_one_token(quant, x)
            gpu_products.multiply_planes(planes, gpu_products.split(x, digits))
            yield from ((quant, tokens, *call) for call in CALLS)
            CALLS.clear()
        gpu_layer.decode_planes(planes, torch.zeros(1, dtype=torch.int64))
    x = torch.zeros((7, 3584))
    gpu_layer.rms_norm(x, x[0], 1e-6)
    gpu_layer.rotate(x.view(7, 28, 128), x[:, :64], x[:, :64], "halves")
    gpu_layer.rotate(x.view(7, 28, 128), x[:, :64], x[:, :64], "adjacent")
    for position in (None, torch.zeros(1, dtype=torch.int64)):
        gpu_layer.attend_few(x.view(7, 28, 128), x.view(7, 28, 128), x.view(7, 28, 128), position)
    gpu_statistics.launch_statistics([x])
    yield from (("", 7, *call) for call in CALLS)


def compile_call(kernel: JITFunction, args: tuple[Any, ...], options: dict[str, Any], capability: int) -> Any:
    """Compile with the types that a launch would derive: an int of 1 is a constant, pointers and 16s are aligned."""
    names = list(kernel.arg_names)
    values = dict(zip(names, args, strict=False)) | {k: v for k, v in options.items() if k in names}
    signature, constants, aligned = {}, {}, {}
    for i, name in enumerate(names):
        value = values[name]
        if kernel.params[i].is_constexpr or (isinstance(value, int) and value == 1):
            signature[name], constants[i,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[name], aligned[i,] = "*" + TYPES[value.dtype], [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32" if abs(value) < 1 << 31 else "i64"
            if isinstance(value, int) and value % 16 == 0:
                aligned[i,] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, aligned)
    own = {k: v for k, v in options.items() if k in ("num_warps", "num_stages", "enable_fp_fusion")}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=own)


def ask(tool: str, option: str, binary: bytes) -> str:
    """What a tool of CUDA says of a kernel's machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin", delete=False) as file:
        file.write(binary)
    try:
        return subprocess.run([TOOLS / tool, option, file.name], capture_output=True, text=True).stdout
    finally:
        os.unlink(file.name)


def resources(binary: bytes) -> dict[str, int]:
    """Registers and bytes of stack."""
    usage = ask("cuobjdump", "-res-usage", binary)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return {"registers": int(found[1]), "stack": int(found[2])}


def loops(binary: bytes) -> dict[str, int]:
    """Instructions of all and of the longest loop."""
    code = ask("nvdisasm", "-c", binary)
    labels: dict[str, int] = {}
    n, longest = 0, 0
    for line in code.splitlines():
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = n
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            n += 1
            back = re.search(r"BRA.*?\((\.L_\w+)\)", line)
            if back and back[1] in labels:
                longest = max(longest, n - labels[back[1]])
    return {"instructions": n, "loop": longest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quants", nargs="*", default=list(LAYOUTS))
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--tokens", default=",".join(map(str, SIZES)))
    parser.add_argument("--loops", action="store_true")
    args = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET") == "1":
        sys.exit("TRITON_INTERPRET=1 is set: there is nothing to compile")
    for quant, tokens, kernel, given, options in launches(args.quants, tuple(map(int, args.tokens.split(",")))):
        made = compile_call(kernel, given, options, args.capability)
        row = {"kernel": kernel.fn.__name__, "quant": quant, "tokens": tokens, "shared": made.metadata.shared}
        row |= resources(made.asm["cubin"]) | (loops(made.asm["cubin"]) if args.loops else {})
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
