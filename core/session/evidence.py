"""Write what was found: bundles, comparisons, checks, CSV."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.audit.audit_file import Audit
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison
from core.session.run_trace import hints
from core.trace.finding import Finding
from core.trace.record import Trace
from core.trace.request import DEFAULTS, RunOptions

MOST_NAME = 100  # characters of a folder's name that a file gives


def export(
    result: Trace | Check | Comparison | Bisection | Audit, out: Path, options: RunOptions = DEFAULTS, *,
    force: bool = False, command: str = "", repeat: str = "", durations: Mapping[str, float] | None = None,
) -> Path:
    """Write what was found as a folder, whole or not at all; UsageError where it exists without force, OutputError.

    options: the scope of a trace's tables and the threshold of its hints. command: what was asked, for the manifest;
    repeat: the same in normal form, for the reports.
    """
    from core.bundle import verdicts
    from core.bundle.writer import write_bundle

    scope, threshold = options.scope, options.threshold
    match result:
        case Audit():
            from core.bundle.costs import write_audit

            write_audit(out, result, force=force, command=command, repeat=repeat)
            return out
        case Trace():
            return write_bundle(
                out, result, scope=scope, findings=hints(result, scope, threshold), threshold=threshold, force=force,
                values=result.values is not None, repeat=repeat,
                manifest_extra={"command": command, "durations": dict(durations or {})})
        case Check():
            return verdicts.write_check(out, result, hints(result.trace, DEFAULTS.scope, threshold),
                                        threshold=threshold, force=force, command=command, repeat=repeat)
        case Bisection(comparison=pair):
            return verdicts.write_comparison(out, pair, _pair_hints(pair, threshold), threshold=threshold, force=force,
                                             command=command, repeat=repeat, bisection=result)
        case Comparison():
            return verdicts.write_comparison(
                out, result, _pair_hints(result, threshold), threshold=threshold, force=force, command=command,
                repeat=repeat)


def export_csv(trace: Trace, path: Path, scope: str) -> None:
    """Write the wide std grid; OutputError."""
    from core.bundle.writer import write_wide_csv

    write_wide_csv(path, trace, scope)


def check_out(out: Path, *, force: bool) -> None:
    """Refuse an output folder before work: UsageError where it exists without force, OutputError where it cannot be."""
    from core.system import atomic_folder as new_folder

    new_folder.check_out(out, force=force)


def default_out(trace: Trace) -> Path:
    """./evidence/<model>-<first 8 hex digits of the input's hash>."""
    ids = ",".join(str(t.id) for t in trace.tokens)
    digest = hashlib.sha256(f"{trace.origin.get('header_sha256')} {ids}".encode()).hexdigest()
    name = re.sub(r"[^\w.+-]+", "_", Path(trace.name).stem)[:MOST_NAME]  # a stranger's bundle may be called anything
    return Path("evidence") / f"{name}-{digest[:8]}"


def _pair_hints(pair: Comparison, threshold: float) -> list[Sequence[Finding]]:
    return [hints(trace, pair.scope, threshold) for trace in (pair.a, pair.b)]
