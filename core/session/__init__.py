"""The library's front: open, trace, compare, bisect, check, export. The command line and the console both call it.

It prints nothing. Every name is fetched from its module at its first use, so that importing this loads nothing heavy.
A Source is what to run or open, a Prompt what to feed, RunOptions how (core.trace.request).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from core.session.costs import damage, is_cost, kl, open_bill, read_cost, write_cost
    from core.session.evidence import check_out, default_out, export, export_csv
    from core.session.files import (
        arch_facts,
        audit,
        convert,
        ensure_demo,
        import_trace,
        is_judged,
        open_judged,
        sibling,
        source,
        weight_spread,
        weights_behind,
        write_demo,
    )
    from core.session.judge import bisect, check, compare
    from core.session.prepare import is_bundle, open_bundle, open_model
    from core.session.run_trace import hints, layer_view, trace
    from core.trace.request import Prompt, RunOptions, Source
    from core.train.prepare import is_first

_HOMES = {  # module -> the names that it hands on
    "core.trace.request": ("Source", "Prompt", "RunOptions"),
    "core.session.run_trace": ("trace", "hints", "layer_view"),
    "core.train.prepare": ("is_first",),
    "core.session.costs": ("damage", "kl", "is_cost", "open_bill", "read_cost", "write_cost"),
    "core.session.judge": ("compare", "bisect", "check"),
    "core.session.prepare": ("open_model", "open_bundle", "is_bundle"),
    "core.session.evidence": ("export", "export_csv", "check_out", "default_out"),
    "core.session.files": (
        "import_trace", "is_judged", "open_judged", "convert", "write_demo", "ensure_demo", "sibling", "weights_behind",
        "weight_spread", "arch_facts", "audit", "source"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Prompt", "RunOptions", "Source", "arch_facts", "audit", "bisect", "check", "check_out", "compare", "convert",
    "damage", "default_out", "ensure_demo", "export", "export_csv", "hints", "import_trace", "is_bundle", "is_cost",
    "is_first", "is_judged", "kl", "layer_view", "open_bill", "open_bundle", "open_judged", "open_model", "read_cost",
    "sibling", "source", "trace", "weight_spread", "weights_behind", "write_cost", "write_demo",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (any of the names above)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
