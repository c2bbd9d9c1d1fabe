"""A trace with a spike, a NaN and an Inf, saved as a bundle: for the tests of bundles."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

from core.bundle.writer import write_bundle
from core.trace.hints import find_hints
from core.trace.stats import Factors, Massive, peaks_of
from tests.support.traces import cells_of, trace_of, values

TABLES = ("stats.csv", "grid-std.csv", "tokens.csv", "findings.json", "report.txt", "report.md", "report.html")


def spiking(n_token=7, **more):
    x = values(n_token, n_layer=7)
    x[3, "ffn_swigl"][0] *= 60
    x[5, "qkv"][min(2, n_token - 1), 4] = math.nan
    x[6, "qkv"][0, :] = math.inf
    cells = cells_of(x, n_token)
    cells[3, "ffn_swigl"] = replace(
        cells[3, "ffn_swigl"], peaks=peaks_of(
            ((4, 0, 150.5), (9, 0, -80.25)), Massive(0.05, ((0, 4, 150.5),)), Factors(0, 4, 12.5, 12.0, -0.75)))
    return trace_of(cells, n_token, **more)


def save(trace, out, scope="all", force=False, keep=False, **extra):
    return write_bundle(out, trace, scope=scope, findings=find_hints(trace, scope=scope), force=force, values=keep,
                        manifest_extra={"command": "apr-tui trace tiny.gguf", **extra})


def rows(path):
    return list(csv.DictReader(path.open(newline="")))


def contents(folder, names=TABLES):
    return {name: (folder / name).read_bytes() for name in names}
