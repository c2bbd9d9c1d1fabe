"""Say what this machine offers: device, memory, kernels and why, terminal, optional engines. It changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Mapping
from importlib import metadata, util
from typing import Any

from core.arch import ARCHS
from core.quants import QUANTS
from core.safe_text import safe_text
from core.telemetry import choose_device, find_gpus

ENGINES = {"llama.cpp": "llama_cpp", "transformers": "transformers"}  # scheme -> the package behind it


def doctor_facts() -> dict[str, Any]:
    """Collect the facts, without importing torch."""
    gpus, why_not = find_gpus()
    device, reason = choose_device("auto")
    columns, lines = shutil.get_terminal_size((0, 0))
    return {
        "apr-tui": _version("apr-tui"), "python": platform.python_version(), "platform": platform.platform(),
        "processors": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(), "torch": _version("torch"),
        "device": {"chosen": device, "why": reason},
        "gpus": [{"index": g.index, "name": g.name, "memory_mib": g.memory_mib} for g in gpus] or why_not,
        "kernels": {"path": "decode-then-multiply", "why": "the only path of this build; fused kernels are not built yet"},
        "architectures": list(ARCHS), "weight_types": list(QUANTS),
        "terminal": {
            "is_a_terminal": sys.stdin.isatty() and sys.stdout.isatty(), "columns": columns or None, "lines": lines or None,
            "term": os.environ.get("TERM"), "no_color": "NO_COLOR" in os.environ, "encoding": sys.stdout.encoding,
            "tmux": "TMUX" in os.environ, "ssh": "SSH_CONNECTION" in os.environ,
        },
        "engines": {scheme: _version_of_module(module) or f"not installed (needs the Python package {module})"
                    for scheme, module in ENGINES.items()},
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
