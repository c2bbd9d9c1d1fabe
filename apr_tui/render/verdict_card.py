"""Write the card of a verdict: measured, floor, multiple, reasons, and what would change it. No widgets, no rules."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from apr_tui.render.pair import verdict_rows
from apr_tui.style import Rows, Span, escape_untrusted, to_terminal_charset, wrap, wrap_spans
from core.model.stages import Place, place_text
from core.proof.check_result import Check
from core.proof.verdict import Comparison, Doubt, Verdict
from core.system.numbers import short
from core.trace.measures import BAD_FACTOR, MIN_NMSE_FLOOR, MIN_REL_L2_FLOOR, NOISE_MULTIPLE, PROOF_MULTIPLE, LocalError

if TYPE_CHECKING:
    from core.trace.record import Trace

WITNESS = {
    True: "traced equals untraced, bit for bit", False: "X traced differs from untraced",
    None: "no witness ran beside it",
}
LONGER = "other values: a longer prompt, or several (--prompts FILE)"
FLOORS = {True: "of float32's rounding through one stage", False: "of A against A with rounding-size noise"}
# what would turn a verdict that is INCONCLUSIVE for another reason than a distance near its floor
CHANGES: dict[str, tuple[str, ...]] = {
    Doubt.UNREACHED: ("a prompt that reaches what differs", "files that do not differ"),
    Doubt.UNKNOWN_TYPE: ("a weight type whose rounding is measured, as F16 or Q8_0, for that tensor",),
    Doubt.STATISTICS: ("values on both sides: the model files, or bundles written with --values",),
    Doubt.UNDECLARED: ("the model files instead of bundles, or bundles of one --compute, device and engine",),
    Doubt.INCOMPLETE: ("the values of every stage on both sides",),
    Doubt.BORROWED: ("the weights of both sides as files that are read here: GGUF or .apr",),
}


def check_card(check: Check, width: int) -> Rows:
    """The card of a check; where it passed, the numbers are those of the stage nearest to its limit."""
    lines: Rows = [[], *wrap_spans(check_spans(check), width)]
    place = check.first or nearest(check)
    error = check.errors.get(place) if place else None
    if place is not None and error is not None:
        lines += [[], *error_rows(place, error)]
    lines += _list("Reasons", check.reasons, width) + _list("What would change it", check_changes(check), width)
    return lines + _side("", check.trace, "title")


def pair_card(found: Comparison, width: int) -> Rows:
    """The card of a comparison."""
    lines: Rows = [[], *verdict_rows(found, width)]
    if found.first is not None:
        lines.append([(f"   {found.meaning}", "quiet")])
    rows = (
        ("measured", found.measured, "|b - a| / |a| of the worst token"),
        ("floor", found.floor, FLOORS[found.floor == MIN_REL_L2_FLOOR]),
        ("multiple", found.multiple,
         f"x the floor; the same up to {NOISE_MULTIPLE:g}, differs above {PROOF_MULTIPLE:g}"),
    )
    if found.broken:
        lines += [[], _row("measured", "-", found.broken)]
    elif found.measured is not None:
        lines += [[], *(_row(name, short(number), text) for name, number, text in rows)]
    if found.error is not None and found.first is not None:
        heading: list[Span] = [(f" Side {found.side or 'A and B'} against float64", "title")]
        lines += [[], heading, *error_rows(found.first, found.error)[1:]]
    lines += _list("Reasons", found.reasons, width) + _list("What would change it", pair_changes(found), width)
    return lines + _side("A", found.a, "a") + _side("B", found.b, "b")


def check_spans(check: Check) -> list[Span]:
    """The verdict of a check in one line: glyph, word, place."""
    if check.doubt is not None:
        return [(f" ? {check.verdict}", "watch"), (f"  {escape_untrusted(check.trace.name)}", "text")]
    if check.first is None:
        return [(" . PASS", "a"), (f"  {escape_untrusted(check.trace.name)} computes what its weights say", "text")]
    token, channel = check.spot
    spans: list[Span] = [(" X FAIL", "bad"), (f"  first {place_text(check.first)}", "title")]
    where = [f"{name} {at}" for name, at in (("token", token), ("ch", channel)) if at is not None]
    if where:
        spans.append((f" {' '.join(where)}", "text"))
    return spans


def error_rows(place: Place, error: LocalError) -> Rows:
    """Measured, floor and multiple of a stage against float64."""
    is_least = error.floor < MIN_NMSE_FLOOR
    least = f" (measured {short(error.floor)}; {MIN_NMSE_FLOOR:g} at least)" if is_least else ""
    where = f"NMSE of token {error.token}, channel {error.channel}; SQNR {short(error.sqnr_db)} dB"
    lines = [
        [(f" {place_text(place)} against float64", "title")],
        _row("measured", short(error.nmse), where),
        _row("floor", short(error.limit), f"what the compute costs{least}"),
        _row("multiple", short(error.nmse / error.limit), f"x the floor; bad above {BAD_FACTOR:g}"),
    ]
    if error.declared is not None:
        lines.append(_row("declared", short(error.declared), "relative L2 from what the declared compute makes of it"))
    return lines


def nearest(check: Check) -> Place | None:
    """The stage nearest to its limit."""
    return max(check.errors, key=lambda p: check.errors[p].nmse / check.errors[p].limit, default=None)


def check_changes(check: Check) -> tuple[str, ...]:
    """What would turn the verdict of a check."""
    place = check.first or nearest(check)
    error = check.errors.get(place) if place else None
    cache = () if check.decoded else ("generated positions, which go through the KV cache: --generate N checks them",)
    if check.first is None or error is None:
        near = f"; the nearest stands at {short(error.nmse / error.limit)} x" if error else ""
        return (f"a stage above {BAD_FACTOR:g} x its floor makes it FAIL{near}", LONGER, *cache)
    span = ("the stages that the source lacks: with them it is said which one is wrong",) if error.span else ()
    return (f"each stage within {BAD_FACTOR:g} x its floor makes it PASS: there, an NMSE of at most "
            f"{short(BAD_FACTOR * error.limit)}",
            f"the right --compute, where these values were not made in {check.trace.facts.compute or 'this one'}: "
            "the floor is that compute's rounding", *span)


def pair_changes(found: Comparison) -> tuple[str, ...]:
    """What would turn the verdict of a comparison."""
    differs = f"a cell above {PROOF_MULTIPLE:g} x its floor: H2, or H3 where a declared choice explains it"
    if found.verdict in (Verdict.AGREE, Verdict.H1):
        return (differs, LONGER)
    if found.verdict is Verdict.NOT_COMPARABLE:
        return ("the facts above, known and equal on both sides",)
    if found.verdict is Verdict.H3:
        return ("the same choice on both sides (quant type, --compute, device): what still differs then is a bug",)
    within: tuple[str, ...] = ()
    if found.floor:
        within = (f"a distance of at most {short(PROOF_MULTIPLE * found.floor)} there is INCONCLUSIVE, of at most "
                  f"{short(NOISE_MULTIPLE * found.floor)} the same",)
    if found.verdict is Verdict.INCONCLUSIVE:
        return CHANGES.get(found.why or "") or within or CHANGES[Doubt.STATISTICS]
    right: tuple[str, ...] = ()
    if found.error is not None:
        right = (f"side {found.side or 'A or B'} is right from an NMSE of {short(BAD_FACTOR * found.error.limit)} down "
                 f"(it stands at {short(found.error.nmse)})",)
    return (*right, *within, "H3: a declared choice (quant type, --compute, device) that, re-run, gives these values")


def _row(name: str, number: str, text: str) -> list[Span]:
    return [(f"   {name:<10}", "quiet"), (f"{number:>8}", "title"), (f"  {text}", "quiet")]


def _list(title: str, texts: Iterable[str], width: int) -> Rows:
    lines: Rows = [[], [(f" {title}", "title")]]
    for text in texts:
        parts = wrap(to_terminal_charset(escape_untrusted(text)), max(width - 6, 10))
        lines += [[(("  - " if i == 0 else "    ") + part, "text")] for i, part in enumerate(parts)]
    return lines


def _side(side: str, trace: Trace, name: str) -> Rows:
    facts = trace.facts
    known = ", ".join(escape_untrusted(str(f)) for f in (facts.engine, facts.arch, facts.compute, facts.device) if f)
    heading: list[Span] = [(f" {side}", name)] if side else []
    return [[], [*heading, (f" {escape_untrusted(trace.name)}", "title")],
            [(f"    {known}, {len(trace.tokens)} tokens", "text")],
            [(f"    {WITNESS[trace.observed_equals_unobserved]}", "text")]]
