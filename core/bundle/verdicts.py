"""Write what a comparison or a check found: its JSON document, and its folder with the bundles in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from core.bundle.csv_table import csv_text
from core.bundle.judged import JUDGED, judged_text
from core.bundle.manifest import SCHEMA, versions
from core.bundle.page_html import page_html
from core.bundle.page_markdown import page_markdown
from core.bundle.verdict_page import check_page, comparison_page
from core.bundle.writer import write_bundle
from core.model.stages import Place, place_order
from core.proof.check_result import Check
from core.proof.contract_gates import gate_rows, judge_gates
from core.proof.verdict import Bisection, Comparison
from core.system.atomic_folder import MANIFEST, REPRODUCER, SIDES, TRACE, new_folder
from core.system.json_text import to_json
from core.trace.finding import Finding
from core.trace.measures import LocalError
from core.trace.request import DEFAULTS

CELLS = ("layer", "stage", "scope", "ratio", "rel_l2", "cosine", "max_abs", "token", "channel", "inherited", "local")
LOCAL = ("layer", "stage", "nmse", "sqnr_db", "floor", "token", "channel")


def comparison_document(c: Comparison) -> dict[str, Any]:
    """The document of `compare --json` and of verdict.json."""
    sides = [{"model": t.name, "compute": t.facts.compute, "device": t.facts.device, "threads": t.facts.threads,
              "planted": t.planted} for t in (c.a, c.b)]
    return {
        "schema": SCHEMA, "verdict": c.verdict, "first": _first(c.first, c.token, c.channel), "side": c.side,
        "measured": c.measured, "floor": c.floor, "multiple": c.multiple, "reasons": list(c.reasons),
        "files": list(c.files),
        "compared": {"tokens": [t.id for t in c.a.tokens], "scope": c.scope, "a": sides[0], "b": sides[1]},
    }


def check_document(c: Check) -> dict[str, Any]:
    """The document of `check --json` and of verdict.json; where it passed, the numbers are those of the worst stage."""
    worst = c.worst
    measured, floor = (worst.nmse, worst.limit) if isinstance(worst, LocalError) else (
        (worst.rel_l2, worst.floor) if worst else (None, None))
    return {
        "schema": SCHEMA, "verdict": c.verdict,
        "first": _first(c.first, *c.spot),
        "measured": measured, "floor": floor, "multiple": measured / floor if measured is not None and floor else None,
        "reasons": list(c.reasons), "planted": c.trace.planted,
    }


def bisection_document(b: Bisection) -> dict[str, Any]:
    """The document of `bisect --json`: a comparison's, with the errors at first, the ladder and the sentence."""
    c = b.comparison
    cell = c.cells.get(c.first) if c.first else None
    ladder = None
    if b.ladder:
        rungs = [{"layer": r.place[0], "stage": r.place[1], "kl": r.kl, "recovered": r.recovered}
                 for r in b.ladder.rungs]
        ladder = {"kl": b.ladder.kl, "entry_layer": b.ladder.entry, "rungs": rungs}
    return comparison_document(c) | {
        "local": cell.local if cell else None, "inherited": cell.inherited if cell else None, "ladder": ladder,
        "sentence": b.sentence,
    }


def write_comparison(
    out: Path, c: Comparison, findings: Sequence[Sequence[Finding]], *, threshold: float, force: bool, command: str,
    repeat: str = "", bisection: Bisection | None = None,
) -> Path:
    """Write a/, b/, cells.csv, verdict.json, gates.json, reports and manifest.json; of a bisection reproducer/.

    Errors: UsageError where out exists without force, OutputError.
    """
    document = comparison_document(c) if bisection is None else bisection_document(bisection)
    with new_folder(out, force=force) as part:
        for name, trace, found in zip(SIDES, (c.a, c.b), findings, strict=True):
            write_bundle(part / name, trace, scope=c.scope, findings=found, threshold=threshold, force=False,
                         values=trace.values is not None, manifest_extra={"command": command})
        if bisection and bisection.write_reproducer:
            bisection.write_reproducer(part / REPRODUCER)
        cells = _table(CELLS, _cell_rows(c))
        page = comparison_page(c, cells, repeat, bisection)
        _write(part, {
            "cells.csv": cells, "verdict.json": to_json(document, indent=1) + "\n",
            "gates.json": to_json(gate_rows(judge_gates(c.a, c)), indent=1) + "\n",
            JUDGED: judged_text(bisection or c), "report.md": page_markdown(page), "report.html": page_html(page),
        }, command)
    return out


def write_check(
    out: Path, c: Check, findings: Sequence[Finding], *, threshold: float, force: bool, command: str, repeat: str = "",
) -> Path:
    """Write trace/, local.csv, verdict.json, gates.json, reports and manifest.json; errors as write_comparison."""
    rows = ((*place, e.nmse, e.sqnr_db, e.floor, e.token, e.channel)
            for place, e in sorted(c.errors.items(), key=lambda item: place_order(item[0])))
    local = _table(LOCAL, rows)
    page = check_page(c, local, repeat)
    with new_folder(out, force=force) as part:
        write_bundle(part / TRACE, c.trace, scope=DEFAULTS.scope, findings=findings, threshold=threshold, force=False,
                     values=False, manifest_extra={"command": command})
        _write(part, {
            "local.csv": local, "verdict.json": to_json(check_document(c), indent=1) + "\n",
            "gates.json": to_json(gate_rows(judge_gates(c.trace)), indent=1) + "\n",
            JUDGED: judged_text(c), "report.md": page_markdown(page), "report.html": page_html(page),
        }, command, {"file": {"name": c.trace.name, "digest": c.trace.digest}})
    return out


def _first(place: Place | None, token: int | None, channel: int | None) -> Mapping[str, Any] | None:
    return None if place is None else {"layer": place[0], "stage": place[1], "token": token, "channel": channel}


def _cell_rows(c: Comparison) -> Iterable[tuple[object, ...]]:
    for place in sorted(set(c.a.cells) | set(c.b.cells), key=place_order):
        left, right = (t.cells[place].at(c.scope) if place in t.cells else None for t in (c.a, c.b))
        ratio = None
        if left and right and left.std is not None and right.std:
            ratio = left.std / right.std
        d = c.cells.get(place)
        measured = (d.rel_l2, d.cosine, d.max_abs, d.token, d.channel, d.inherited, d.local) if d else (None,) * 7
        yield (*place, c.scope, ratio, *measured)


def _table(columns: Sequence[str], rows: Iterable[tuple[object, ...]]) -> str:
    rows = list(rows)
    return csv_text({name: [row[i] for row in rows] for i, name in enumerate(columns)}, as_text=True)


def _write(folder: Path, files: Mapping[str, str], command: str, more: Mapping[str, object] = {}) -> None:
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    sums = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    manifest = {"schema": SCHEMA, "command": command, **more, "versions": versions(), "sha256": sums}
    (folder / MANIFEST).write_text(to_json(manifest, indent=1) + "\n", encoding="utf-8")
