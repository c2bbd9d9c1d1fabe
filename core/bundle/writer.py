"""Write a trace as a bundle, whole or not at all. It measures and judges nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.bundle.csv_table import csv_text
from core.bundle.manifest import manifest_text
from core.bundle.page_markdown import page_markdown
from core.bundle.report import report_text
from core.bundle.tables import STATS_COLUMNS, VALUES, stats_rows, tokens_columns
from core.bundle.trace_page import trace_html, trace_page
from core.model.stages import GRID_STAGES
from core.system.atomic_file import is_special, new_file, refuse_foreign
from core.system.atomic_folder import MANIFEST, new_folder
from core.system.errors import OutputError, os_reason
from core.system.json_text import to_json
from core.trace.finding import Finding
from core.trace.grid import layers, value
from core.trace.metrics import STATS
from core.trace.record import Trace
from core.trace.values_file import write_values

WIDE = f"layer,{GRID_STAGES[0]}".encode()                 # how every wide grid begins


def write_bundle(
    out: Path, trace: Trace, *, scope: str, findings: Sequence[Finding], manifest_extra: Mapping[str, object],
    force: bool, values: bool, threshold: float = 10.0, repeat: str = "",
) -> Path:
    """Write a bundle and return its folder; UsageError where one stands and force is not set, OutputError.

    repeat: the command that gives the same numbers, in normal form.
    """
    with new_folder(out, force=force) as part:
        stats = stats_csv(trace)
        page = trace_page(trace, scope, findings, stats, threshold, repeat)
        files = {
            "stats.csv": stats, "grid-std.csv": wide_csv(trace, scope), "tokens.csv": tokens_csv(trace),
            "findings.json": findings_json(findings), "report.txt": report_text(trace, scope, findings, threshold),
            "report.md": page_markdown(page), "report.html": trace_html(page, scope),
        }
        sha256: dict[str, str] = {}
        for name, text in files.items():
            data = text.encode()
            (part / name).write_bytes(data)
            sha256[name] = hashlib.sha256(data).hexdigest()
        if values and trace.values is not None:
            sha256[VALUES] = write_values(part / VALUES, trace.values)
        (part / MANIFEST).write_text(manifest_text(trace, scope, manifest_extra, sha256), encoding="ascii")
    return out


def validate_csv(path: Path, force: bool) -> None:
    """Refuse to replace a file that holds no wide grid, before the work; UsageError, OutputError."""
    if not is_special(path):
        refuse_foreign(path, force, WIDE, "--csv", "grid")


def write_wide_csv(path: Path, trace: Trace, scope: str) -> None:
    """Write the wide grid alone: the bytes of a bundle's grid-std.csv; OutputError."""
    data = wide_csv(trace, scope).encode()
    if is_special(path):
        try:
            path.write_bytes(data)
        except OSError as error:
            raise OutputError(f"{path} could not be written: {os_reason(error)}. Give a file's name.") from error
        return
    with new_file(Path(os.path.realpath(path)), force=True) as part:
        part.write_bytes(data)


def stats_csv(trace: Trace) -> str:
    """Write every cell at every scope that it has."""
    cells = stats_rows(trace.cells)
    rows = [(*place, scope, *(getattr(stats, s.name) for s in STATS)) for place, scope, stats in cells]
    return csv_text({name: [row[i] for row in rows] for i, name in enumerate(STATS_COLUMNS)})


def wide_csv(trace: Trace, scope: str) -> str:
    """Write the std grid at a scope: layers down, ten stages across."""
    down = layers(trace.cells)
    columns = {stage: [value(trace.cells, (layer, stage), scope, "std") for layer in down] for stage in GRID_STAGES}
    return csv_text({"layer": down, **columns})


def tokens_csv(trace: Trace) -> str:
    """Write every cell's row of each token; only the header where the source has no per-token statistics."""
    return csv_text(tokens_columns(trace))


def findings_json(findings: Sequence[Finding]) -> str:
    """Write the findings as a list, one a line."""
    return "[\n" + ",\n".join(to_json(f) for f in findings) + "\n]\n"
