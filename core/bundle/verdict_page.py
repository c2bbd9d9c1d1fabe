"""The report of a verdict as a page: the verdict, its first cell, reasons, five lines around it, then every cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from core.bundle.page import Bullets, Grid, GridCell, Link, Page, Section, Sentence, Table, Tone
from core.bundle.trace_page import (
    csv_rows,
    input_text,
    layer_sections,
    planted_section,
    repeat_section,
    shade,
)
from core.model.stages import GRID_STAGES, Place, place_text
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison, Verdict
from core.system.numbers import short
from core.system.outcome import Outcome
from core.trace.finding import ABSENT, BAD, OK, WATCH
from core.trace.measures import BAD_FACTOR, Difference, LocalError, State
from core.trace.record import Trace

T = TypeVar("T")
AROUND = 2  # rows on either side of the first cell
TONES = {Verdict.H2: Tone.BAD, Outcome.FAIL: Tone.BAD, Verdict.AGREE: Tone.GOOD, Verdict.H1: Tone.GOOD,
         Outcome.PASS: Tone.GOOD}
STATES = {State.SAME: (OK, Tone.PLAIN), State.UNCLEAR: (WATCH, Tone.WATCH), State.DIFFERS: (BAD, Tone.BAD),
          State.ABSENT: (ABSENT, Tone.ABSENT)}
PAIR_LEGEND = ("relative L2 of B against A; X differs  ! near the noise floor  - absent; "
               "shaded by what the cell adds by itself, in multiples of its floor")
CHECK_LEGEND = f"NMSE against float64; X above {BAD_FACTOR:g} x its floor  - not judged; shaded by the multiple"


def comparison_page(c: Comparison, cells: str, repeat: str, bisection: Bisection | None = None) -> Page:
    """The page of a comparison or a bisection. cells: cells.csv."""
    names, rows = c.names, csv_rows(cells)
    side = f"; side {c.side} is wrong" if c.side else ""
    first = f" First cell: {place_text(c.first)}{_where(c.token, c.channel)}{side}." if c.first is not None else ""
    ladder = _ladder_section(bisection) if bisection else ()
    return Page(f"A {names[0]} against B {names[1]}", c.verdict, TONES.get(c.verdict, Tone.WATCH),
                f"{c.meaning}.{first}", (
        *planted_section(c.a, c.b),
        Section("Measured", (_numbers(c.measured, c.floor, c.multiple, "relative L2"),), "measured"),
        Section("Reasons", (Bullets(c.reasons),), "reasons"), *ladder,
        *_around_section(rows, c.first), *repeat_section(repeat), _sides_section(c),
        Section("The grid", (_grid(c.cells, _pair_cell, max(c.a.n_layer, c.b.n_layer), PAIR_LEGEND,
                                      c.first),), "grid",
                is_detail=True),
        *layer_sections(rows, _columns(rows))))


def check_page(c: Check, local: str, repeat: str) -> Page:
    """The page of a check. local: local.csv."""
    rows, worst = csv_rows(local), c.worst
    first = (f"The first bad place is {place_text(c.first)}{_where(*c.spot)}." if c.first is not None
             else "No bad place was found." if c.doubt is None else "It could not be judged.")
    measured = (_numbers(worst.nmse, worst.limit, worst.nmse / worst.limit, "NMSE") if isinstance(worst, LocalError)
                else _numbers(None, None, None, "NMSE"))
    return Page(f"{c.trace.name} against float64", c.verdict, TONES.get(c.verdict, Tone.WATCH), first, (
        *planted_section(c.trace), Section("Measured", (measured,), "measured"),
        Section("Reasons", (Bullets(c.reasons),), "reasons"),
        *_around_section(rows, c.first), *repeat_section(repeat),
        Section("The run", (_side_sentence("", c.trace), Sentence(input_text(c.trace))), "run"),
        Section("The grid", (_grid(c.errors, _check_cell, c.trace.n_layer, CHECK_LEGEND,
                                      c.first),), "grid", is_detail=True),
        *layer_sections(rows, _columns(rows))))


def _columns(rows: Sequence[Mapping[str, str]]) -> tuple[str, ...]:
    return tuple(name for name in (rows[0] if rows else ()) if name != "layer")


def _where(token: int | None, channel: int | None) -> str:
    return "".join(f", {name} {at}" for name, at in (("token", token), ("channel", channel)) if at is not None)


def _numbers(measured: float | None, floor: float | None, multiple: float | None, unit: str) -> Table:
    texts = ("" if x is None else str(x) for x in (measured, floor, multiple))
    return Table((f"measured ({unit})", "floor", "multiple of the floor"), (tuple(texts),))


def _around_section(rows: Sequence[Mapping[str, str]], first: Place | None) -> tuple[Section, ...]:
    """The rows about the first cell, in order of computation; nothing where no row is its."""
    wanted = None if first is None else ("" if first[0] is None else str(first[0]), first[1])
    at = next((i for i, row in enumerate(rows) if (row["layer"], row["stage"]) == wanted), None)
    if at is None:
        return ()
    start = max(0, min(at - AROUND, len(rows) - 2 * AROUND - 1))
    shown = rows[start:start + 2 * AROUND + 1]
    columns = tuple(rows[0])
    return (Section("Around it", (
        Table(columns, tuple(tuple(row[c] for c in columns) for row in shown), marked=at - start),), "around"),)


def _ladder_section(b: Bisection) -> tuple[Section, ...]:
    parts: list[Sentence | Table] = [Sentence(b.sentence)]
    if b.ladder:
        parts.append(Table(("graft of B into A", "KL (nats)", "recovered"), tuple(
            (place_text(r.place), str(r.kl), str(r.recovered)) for r in b.ladder.rungs)))
    return (Section("Proof", tuple(parts), "proof"),)


def _sides_section(c: Comparison) -> Section:
    links = Table(("side", "its own report"), tuple((n, Link(f"{n}/report.html", f"{n}/report.html")) for n in "ab"))
    return Section("The sides", (_side_sentence("A: ", c.a), _side_sentence("B: ", c.b), Sentence(input_text(c.a)),
                                 links), "sides")


def _side_sentence(label: str, trace: Trace) -> Sentence:
    facts = trace.facts
    threads = f"{facts.threads} thread{'s' if facts.threads > 1 else ''}" if facts.threads else None
    known = (trace.name, facts.engine, facts.arch, facts.compute, facts.device, threads,
             f"digest {trace.digest}" if trace.digest else None)
    return Sentence(label + ", ".join(str(k) for k in known if k))


def _grid(
    found: Mapping[Place, T], cell: Callable[[T, Place], GridCell], n_layer: int, legend: str, first: Place | None,
) -> Grid:
    empty = GridCell("-", ABSENT, "", Tone.ABSENT, "")
    rows = tuple((str(i), tuple(cell(found[i, s], (i, s)) if (i, s) in found else empty for s in GRID_STAGES))
                 for i in range(n_layer))
    return Grid(GRID_STAGES, rows, legend, "" if first is None else place_text(first))


def _pair_cell(d: Difference, place: Place) -> GridCell:
    glyph, tone = STATES[d.state]
    own = d.rel_l2 if d.local is None else d.local  # what it inherits is another cell's doing
    multiple = own / d.floor if own is not None and d.floor else None
    return GridCell(short(d.rel_l2), glyph, "" if d.rel_l2 is None else str(d.rel_l2), tone, place_text(place),
                    shade(multiple, 10.0))


def _check_cell(e: LocalError, place: Place) -> GridCell:
    return GridCell(short(e.nmse), BAD if e.is_bad else OK, str(e.nmse), Tone.BAD if e.is_bad else Tone.PLAIN,
                    place_text(place), shade(e.nmse / e.limit, 10.0))
