"""The report of a trace as a page: findings first, the grid, then every layer's statistics as stats.csv has them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from core.bundle.grid_text import legend, title_lines
from core.bundle.manifest import versions
from core.bundle.page import SHADES, Bullets, Code, Grid, GridCell, Page, Part, Section, Sentence, Table, Tone
from core.bundle.page_html import page_html
from core.bundle.report import WITNESS
from core.bundle.tables import STATS_COLUMNS
from core.model.stages import GRID_STAGES, Place, place_text
from core.system.numbers import short
from core.trace.finding import ABSENT, BAD, WATCH, Finding
from core.trace.grid import layers, marks, metric_shown, ratio, value
from core.trace.record import Trace

MOST_BYTES = 1_500_000  # of a page: a mail takes it
TONES = {BAD: Tone.BAD, WATCH: Tone.WATCH, ABSENT: Tone.ABSENT}


def trace_page(
    trace: Trace, scope: str, findings: Sequence[Finding], stats: str, threshold: float = 10.0, repeat: str = "",
) -> Page:
    """The page of a trace. stats: stats.csv."""
    *_, ran, shown = title_lines(trace, scope)
    first = f"Look first at {place_text(findings[0].place)}: {findings[0].sentence}" if findings else "Findings: none."
    closing = [Sentence(f"Traced equals untraced: {WITNESS[trace.observed_equals_unobserved]}."),
               Sentence(input_text(trace))]
    rows = csv_rows(stats)
    return Page(ran, "", Tone.PLAIN, first, (
        *planted_section(trace),
        Section(shown, (replace(trace_grid(trace, scope, threshold, rows),
                                first=place_text(findings[0].place) if findings else ""),), "grid"),
        *((Section("Findings (hints say where to look; they prove nothing)", (Bullets(tuple(
            f"{f.kind} {place_text(f.place)} ({f.strength}, scope {f.scope}): {f.sentence}" for f in findings),
            numbered=True),), "findings"),) if findings else ()),
        Section("The run", tuple(closing), "run"),
        *repeat_section(repeat),
        *layer_sections(rows, tuple(c for c in STATS_COLUMNS if c != "layer")),
    ))


def trace_html(page: Page, scope: str) -> str:
    """The page of a trace as HTML; where it is above MOST_BYTES, with the statistics of the shown scope alone."""
    text = page_html(page)
    return text if len(text) <= MOST_BYTES else page_html(only_scope(page, scope))


def only_scope(page: Page, scope: str) -> Page:
    """The page without the statistics of other scopes, which says so."""
    said = Section("Other scopes", (Sentence(f"stats.csv has the other scopes; here stands {scope} alone."),), "scopes")
    return replace(page, sections=(*(_of_scope(s, scope) for s in page.sections), said))


def _of_scope(section: Section, scope: str) -> Section:
    parts: list[Part] = []
    for part in section.parts:
        if isinstance(part, Table) and "scope" in part.columns and section.is_detail:
            kept = tuple(row for row in part.rows if row[part.columns.index("scope")] == scope)
            stage = part.columns.index("stage")
            prefix = section.anchor.removeprefix("layer-")
            part = replace(part, rows=kept, anchors=tuple(
                str(row[stage]) if prefix == "none" else f"{prefix}.{row[stage]}" for row in kept))
        parts.append(part)
    return replace(section, parts=tuple(parts))


def trace_grid(trace: Trace, scope: str, threshold: float, rows: Sequence[Mapping[str, str]]) -> Grid:
    """The grid of stds, or of means where a source has no std: marked as the console marks it, shaded by the ratio."""
    mark, kinds = marks(trace.cells, scope, threshold, trace.layer_kinds), trace.layer_kinds
    metric = metric_shown(trace.cells, scope)
    written = {(row["layer"], row["stage"]): row[metric] for row in rows if row["scope"] == scope}

    def cell(place: Place) -> GridCell:
        number, glyph = value(trace.cells, place, scope, metric), mark[place]
        exact = written.get((str(place[0]), place[1]), "" if number is None else str(number))
        return GridCell(short(number), glyph, exact, TONES.get(glyph, Tone.PLAIN),
                        "" if glyph == ABSENT else place_text(place), shade(ratio(trace.cells, place, scope, kinds)))

    return Grid(GRID_STAGES, tuple((str(i), tuple(cell((i, s)) for s in GRID_STAGES)) for i in layers(trace.cells)),
                legend(threshold))


def layer_sections(rows: Sequence[Mapping[str, str]], columns: tuple[str, ...]) -> Iterator[Section]:
    """A section a layer with the rows of a table, each under the anchor of its place."""
    by_layer: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        by_layer.setdefault(row["layer"], []).append(row)
    for layer, own in by_layer.items():
        seen: set[str] = set()
        anchors = []
        for row in own:
            name = f"{layer}.{row['stage']}" if layer else row["stage"]  # as place_text writes it
            anchors.append("" if name in seen else name)
            seen.add(name)
        yield Section(f"Layer {layer}" if layer else "Whole model", (
            Table(columns, tuple(tuple(row[c] for c in columns) for row in own), tuple(anchors)),),
            f"layer-{layer or 'none'}", is_detail=True)


def planted_section(*traces: Trace) -> tuple[Section, ...]:
    """Say that a run carries a bug put there on purpose; nothing where none does."""
    told = tuple(Sentence(f"PLANTED {t.planted}: this run carries a bug put there on purpose.", Tone.BAD)
                 for t in traces if t.planted)
    return (Section("Planted", told, "planted"),) if told else ()


def repeat_section(repeat: str) -> tuple[Section, ...]:
    """The command that gives the same numbers, and the versions that they depend on."""
    known = ", ".join(f"{name} {version}" for name, version in versions().items() if version is not None)
    command = (Code(repeat),) if repeat else ()
    return (Section("To repeat it", (*command, Sentence(known)), "repeat"),)


def input_text(trace: Trace) -> str:
    """The input's token ids, and how many."""
    ids = ", ".join(str(t.id) for t in trace.tokens[:64])
    return f"Input: {len(trace.tokens)} tokens, ids {ids}{', ...' if len(trace.tokens) > 64 else ''}." if ids else (
        "Input: tokens unknown.")


def csv_rows(text: str) -> list[dict[str, str]]:
    """The rows of a table of the folder, each number as it stands there."""
    return list(csv.DictReader(io.StringIO(text)))


def shade(multiple: float | None, per_step: float = 2.0) -> int:
    """How strongly a cell is shaded: a step for each factor of per_step above it."""
    if multiple is None or not math.isfinite(multiple) or multiple <= per_step:
        return 0
    return min(SHADES, int(math.log(multiple, per_step)))
