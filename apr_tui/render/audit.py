"""Write an audit as the lines of its page: proofs, then hints, then facts. No widgets."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_tui.style import Rows, Span, escape_untrusted, fit_text, to_terminal_charset, wrap
from core.system.numbers import short

if TYPE_CHECKING:
    from collections.abc import Sequence

    from core.audit.audit_file import Audit
    from core.audit.finding import Finding
    from core.audit.spread import Spread

WIDE = 70  # columns for the whole range of a weight's siblings


def audit_lines(audit: Audit, width: int) -> Rows:
    """The page: what is proved, what is to be weighed, what the file is."""
    from core.bundle.audits import fact_lines

    lines: Rows = [[], *_listed("Proofs", "X", "bad", audit.proofs, width)]
    lines += [[], *_listed("Hints, for a person to weigh", "!", "watch", audit.hints, width), [], [(" Facts", "title")]]
    for text in fact_lines(audit):
        lines += [[(f"   {part}", "text")] for part in wrap(to_terminal_charset(escape_untrusted(text)), width - 4)]
    return lines


def proof_note(audit: Audit) -> tuple[str, str]:
    """One line on what an audit found."""
    if audit.proofs:
        return f"X {escape_untrusted(audit.proofs[0].sentence)} (proof 1 of {len(audit.proofs)})", "bad"
    n = len(audit.hints)
    return f"nothing is proved against the file; {n} hint{'s' * (n != 1)}", "watch" if n else "quiet"


def spread_lines(spread: Spread | None, width: int) -> Rows:
    """A weight's level beside its siblings'; nothing where it has none."""
    if spread is None:
        return []
    z = f", z {spread.z:.1f}" if spread.z is not None else ""
    text = f"rms {short(spread.level)}, siblings {short(spread.middle)}{z}"
    if width >= WIDE:
        text = (f"rms {short(spread.level)}; {spread.n_sibling} siblings {short(spread.least)} to "
                f"{short(spread.largest)}, middle {short(spread.middle)}{z}")
    return [[(f"  {fit_text(text, width - 2)}", "quiet")]]


def _listed(title: str, mark: str, name: str, findings: Sequence[Finding], width: int) -> Rows:
    head: list[Span] = [(f" {title.partition(',')[0] if not findings else title}", "title")]
    if not findings:
        return [[*head, (": none", "quiet")]]
    lines: Rows = [head]
    for finding in findings:
        parts = wrap(to_terminal_charset(escape_untrusted(finding.sentence)), width - 6)
        lines += [[(f"  {mark if i == 0 else ' '} ", name), (part, "text")] for i, part in enumerate(parts)]
        lines += [[(f"    {part}", "quiet")] for part in wrap(f"{finding.kind}: {finding.rule}", width - 6)]
    return lines
