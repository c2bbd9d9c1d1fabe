"""Table of the instruction sets that the kernels are compiled for, and which of them this machine has.

It compiles nothing (build.py does). A level is one build of the same sources.
"""

from __future__ import annotations

import functools
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from core.system.child import run_program

X86 = frozenset({"x86_64", "amd64"})
V3 = frozenset({"avx2", "fma", "f16c", "bmi1", "bmi2", "movbe"})
AMX = {"amx_tile", "amx_int8", "amx_bf16", "avx512_vnni", "avx512_bf16"}
V4 = V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}

WHOLE = "blocks: activations as 24-bit whole numbers by blocks of 256, sums of a scale's weights exact; else float32"
WHOLE_Q8 = "blocks: activations as 8-bit whole numbers, sums of a scale's weights exact; else float32"


@dataclass(frozen=True, slots=True)
class Level:
    """One build: the processors it runs on, the compiler's flags, and what it does to numbers."""

    name: str
    machines: frozenset[str]  # empty: every one
    needs: frozenset[str]  # processor flags as Linux names them
    flags: tuple[str, ...]
    description: str = "float32 products and sums"
    description_q8: str = "float32 products and sums"
    description_bf16: str = "float32 sums of bfloat16's products"


LEVELS = (  # the first that this machine has is taken
    Level("amx", X86, V4 | AMX, (
        "-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
          "K-quants: activations as 24-bit whole numbers by blocks of 256, sums of a block exact; else float32",
          "K-quants: activations as 8-bit whole numbers, sums of a block of 256 exact; else float32",
          "tiles of bfloat16, sums in float32"),
    Level("avx512bf16", X86, V4 | {"avx512_vnni", "avx512_bf16", "avx512vbmi"}, (
        "-march=x86-64-v4", "-mavx512vnni", "-mavx512bf16", "-mavx512vbmi"), WHOLE, WHOLE_Q8),
    Level("avx512vnni", X86, V4 | {"avx512_vnni"}, ("-march=x86-64-v4", "-mavx512vnni"), WHOLE, WHOLE_Q8),
    Level("avx512", X86, V4, ("-march=x86-64-v4",), description_q8=WHOLE_Q8),
    Level("avxvnni", X86, V3 | {"avx_vnni"}, ("-march=x86-64-v3", "-mavxvnni"), WHOLE, WHOLE_Q8),
    Level("avx2", X86, V3, ("-march=x86-64-v3",), description_q8=WHOLE_Q8),
    Level("plain", frozenset(), frozenset(), ()),  # SSE2 on x86-64, NEON on arm64
)


def usable_levels() -> tuple[Level, ...]:
    """Return the levels that this processor runs, best first."""
    machine, has = platform.machine().lower(), processor_flags()
    return tuple(v for v in LEVELS if (not v.machines or machine in v.machines) and v.needs <= has)


@functools.cache
def processor_flags() -> frozenset[str]:
    """Return the processor's flags in lower case; none where the system does not say."""
    try:
        if sys.platform == "darwin":
            names = ["machdep.cpu.features", "machdep.cpu.leaf7_features"]
            said = run_program(("sysctl", "-n", *names), 5).stdout
            return frozenset(said.lower().replace("avx1.0", "avx").split())
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("flags"):
                return frozenset(line.partition(":")[2].split())
    except (OSError, subprocess.SubprocessError):
        return frozenset()
    return frozenset()
