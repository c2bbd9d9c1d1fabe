"""Write what was found: bundles, comparisons, checks, CSV."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from core.proof.verdict import Bisection, Check, Comparison
from core.session.run_trace import hints
from core.trace.record import Trace


def export_trace(
    trace: Trace, out: Path, *, scope: str, threshold: float, force: bool, command: str,
    durations: Mapping[str, float] | None = None,
) -> Path:
    """Write a bundle, whole or not at all; UsageError where it exists and force is not set, OutputError."""
    from core.bundle.writer import write_bundle

    return write_bundle(
        out, trace, scope=scope, findings=hints(trace, scope, threshold), threshold=threshold, force=force,
        values=trace.values is not None, manifest_extra={"command": command, "durations": dict(durations or {})})


def export_csv(trace: Trace, path: Path, scope: str) -> None:
    """Write the wide std grid; OutputError."""
    from core.bundle.writer import write_wide_csv

    write_wide_csv(path, trace, scope)


def export_comparison(comparison: Comparison, out: Path, *, threshold: float, force: bool, command: str) -> Path:
    """Write a/, b/, cells.csv, verdict.json and manifest.json; errors as export_trace."""
    from core.bundle.verdicts import write_comparison

    findings = [hints(t, comparison.scope, threshold) for t in (comparison.a, comparison.b)]
    return write_comparison(out, comparison, findings, threshold=threshold, force=force, command=command)


def export_bisection(result: Bisection, out: Path, *, threshold: float, force: bool, command: str) -> Path:
    """Write what export_comparison writes, and the reproducer where a side is wrong."""
    from core.bundle.verdicts import write_comparison

    c = result.comparison
    findings = [hints(t, c.scope, threshold) for t in (c.a, c.b)]
    return write_comparison(out, c, findings, threshold=threshold, force=force, command=command, bisection=result)


def export_check(result: Check, out: Path, *, force: bool, command: str) -> Path:
    """Write local.csv, verdict.json and manifest.json; errors as export_trace."""
    from core.bundle.verdicts import write_check

    return write_check(out, result, force=force, command=command)


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an output folder before work: UsageError where it exists without force, OutputError where it cannot be."""
    from core.system import atomic_folder as new_folder

    new_folder.check_out(out, force=force)


def default_out(trace: Trace) -> Path:
    """./evidence/<model>-<first 8 hex digits of the input's hash>."""
    ids = ",".join(str(t.id) for t in trace.tokens)
    digest = hashlib.sha256(f"{trace.origin.get('header_sha256')} {ids}".encode()).hexdigest()
    return Path("evidence") / f"{Path(trace.name).stem}-{digest[:8]}"
