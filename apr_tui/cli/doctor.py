"""The command doctor: say what this machine offers: device, memory, kernels and why, terminal, optional engines.

It changes nothing: no kernel is compiled, and torch is not imported.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata, util
from typing import Any

from apr_tui.config import config_path, read_config
from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core.kernels.cpu import build as library
from core.quant.types import GPU, QUANTS, UNFUSED
from core.system.errors import UsageError
from core.system.gpus import choose_device, find_gpus
from core.system.json_text import to_json
from core.system.safe_text import safe_text
from core.trace.engines import ENGINES


class Arguments(Basic):
    """Arguments of doctor."""

    json: bool


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.take("--json")


def run(arguments: Arguments) -> int:
    """Print the facts and return the exit code."""
    facts = doctor_facts()
    sys.stdout.write(to_json(facts) + "\n" if arguments.json else doctor_text(facts))
    return 0


def doctor_facts() -> dict[str, Any]:
    """Collect the facts, without importing torch."""
    from core.formats.architectures import ARCHS

    gpus, why_not = find_gpus()
    device, reason = choose_device("auto")
    columns, lines = shutil.get_terminal_size((0, 0))
    return {
        "apr-tui": _version("apr-tui"), "python": platform.python_version(), "platform": platform.platform(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(), "torch": _version("torch"),
        "device": {"chosen": device, "why": reason},
        "gpus": [{"index": g.index, "name": g.name, "memory_mib": g.memory_mib} for g in gpus] or why_not,
        "kernels": _kernels(device),
        "architectures": list(ARCHS), "weight_types": list(QUANTS),
        "terminal": {
            "is_a_terminal": sys.stdin.isatty() and sys.stdout.isatty(),
            "columns": columns or None, "lines": lines or None,
            "term": os.environ.get("TERM"), "no_color": "NO_COLOR" in os.environ, "encoding": sys.stdout.encoding,
            "tmux": "TMUX" in os.environ, "ssh": "SSH_CONNECTION" in os.environ,
        },
        "engines": {scheme: _version_of_module(engine.packages[0]) or f"not installed ({engine.install})"
                    for scheme, engine in ENGINES.items()},
        "settings": _settings(),
    }


def doctor_text(facts: Mapping[str, Any]) -> str:
    """The facts, a line each."""
    return "".join(f"{key:<14} {safe_text(_line(value))}\n" for key, value in facts.items())


def _line(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_line(v)}" for k, v in value.items())
    if isinstance(value, list):
        return ", ".join(_line(v) for v in value)
    if value is None or isinstance(value, bool):
        return {None: "unknown", True: "yes", False: "no"}[value]
    return str(value)


def _kernels(device: str) -> dict[str, str]:
    """The kernel path on the device and why, as matmul.kernel_path says it of a run; nothing is compiled."""
    if device != "cpu":
        path, why = _cpu_kernels()
        triton = _version("triton")
        served = [name for name, quant in QUANTS.items() if GPU in quant.kernels]
        on_gpu = (f"Triton {triton} for {' '.join(served)}; other types decode-then-multiply",
                  "float32 without TF32, weights quantised on the device") if triton else (
                 "decode-then-multiply, whole tensors", "the Python package triton is not installed")
        return {"path": on_gpu[0], "why": on_gpu[1], "on_cpu": f"{path} ({why})"}
    return dict(zip(("path", "why"), _cpu_kernels(), strict=True))


def _cpu_kernels() -> tuple[str, str]:
    missing = library.pending_build()
    if missing is not None:
        return (f"fused {missing.stem}, not compiled yet",
                f"{missing} is not there; the first run that multiplies compiles it in some seconds")
    kernels = library.library()
    if isinstance(kernels, library.Absent):
        return "decode-then-multiply", kernels.reason
    return f"fused {kernels.level.name}; {' '.join(UNFUSED)}: decode-then-multiply", kernels.reason


def _settings() -> dict[str, Any] | str:
    """The user's settings and where they stand, or what is wrong with them."""
    try:
        config, path = read_config(), config_path()
    except UsageError as error:
        return str(error)
    told = {key: value for key, value in asdict(config).items() if value is not None}
    return {"file": None if path is None else str(path), **told}


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (ValueError, OSError, AttributeError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _version_of_module(module: str) -> str | None:
    if util.find_spec(module) is None:
        return None
    names = metadata.packages_distributions().get(module, [module])
    return _version(names[0]) or "installed"
