"""The command look: everything about one stage of a run, as the console's layer and stage pages have it."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_tui.cli.launch import prompt_of, source_of
from apr_tui.cli.progress import progress
from apr_tui.options import FEED, Parser, RunArguments, record_of
from core import session
from core.model.stages import SCOPES, parse_place, place_text
from core.system.errors import UsageError
from core.trace.metrics import STATS
from core.trace.request import Prompt, RunOptions

if TYPE_CHECKING:
    from core.trace.stats import Cell

SHOWN = 12  # tokens and lens rows of the text; the document has all


class Arguments(RunArguments):
    """Arguments of look."""

    MODEL: str
    PLACE: str
    threshold: float
    json: bool
    quiet: bool


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.add_argument("MODEL", help="a model file, or llama.cpp:FILE, transformers:FILE")
    parser.add_argument("PLACE", help="3.ffn_swigl; a whole-model stage by its name alone")
    parser.take(*FEED, "--device", "--compute", "--threads", "--no-mmap", "--plant", "--threshold", "--json", "--quiet")


def run(arguments: Arguments) -> int:
    """Trace, look into the layer, print, and return the exit code."""
    from core.system.json_text import to_json

    document = look(arguments)
    sys.stdout.write(to_json(document) + "\n" if arguments.json else look_text(document))
    return 0


def look(arguments: Arguments) -> dict[str, Any]:
    """The document: statistics, tokens, weights beside their siblings, histogram, attention, logit lens, findings."""
    from core.bundle.manifest import SCHEMA

    layer, stage = place = parse_place(arguments.PLACE)
    source, prompt = source_of(arguments, arguments.MODEL, arguments.plant), prompt_of(arguments) or Prompt()
    options, emit = record_of(RunOptions, arguments, witness=False), progress(arguments)
    traced = session.trace(source, prompt, options, emit=emit)
    if place not in traced.cells:
        raise UsageError(f"{place_text(place)}: {traced.name} shows no such stage. It has layers 0 to "
                         f"{traced.n_layer - 1}, and in layer 0 {', '.join(s for i, s in traced.cells if i == 0)}.")
    cell, is_file = traced.cells[place], not source.scheme and Path(source.path).is_file()
    model = session.open_model(source.path) if is_file else None
    view = session.layer_view(source, Prompt(tokens=tuple(t.id for t in traced.tokens)), layer, emit=emit) if (
        model is not None and layer is not None) else None
    weights = session.weights_behind(model, layer, stage) if model is not None else ()
    return {
        "schema": SCHEMA, "model": traced.name, "place": {"layer": layer, "stage": stage}, "planted": traced.planted,
        "scopes": {scope: stats and asdict(stats) for scope in SCOPES for stats in (cell.at(scope),)},
        "tokens": _tokens(cell, [(t.id, t.text) for t in traced.tokens]),
        "weights": [{"name": name, "type": kind, "shape": list(shape),
                     "spread": session.weight_spread(model, name) if model is not None else None}
                    for name, kind, shape in weights],
        "histogram": None if view is None else _plain(view.histograms.get(stage)),
        "attention": None if view is None or view.attention is None else view.attention.tolist(),
        "lens": [] if view is None else [asdict(t) for t in view.lens],
        "findings": [f for f in session.hints(traced, "all", arguments.threshold) if f.place == place],
    }


def _plain(histogram: Any) -> dict[str, Any] | None:  # noqa: ANN401 (core.trace.look_inside loads torch)
    return None if histogram is None else {**asdict(histogram), "counts": histogram.counts.tolist()}


def _tokens(cell: Cell, tokens: list[tuple[int, str | None]]) -> list[dict[str, Any]]:
    """The statistics at each position that the stage has."""
    return [{"token": i, "id": id, "text": text, **asdict(stats)} for i, (id, text) in enumerate(tokens)
            for stats in (cell.at(f"pos:{i}"),) if stats is not None]


def look_text(document: dict[str, Any]) -> str:
    """The same for a person."""
    from core.system.numbers import short
    from core.system.safe_text import safe_text

    place = place_text((document["place"]["layer"], document["place"]["stage"]))
    lines = [f"{safe_text(document['model'])}  {place}", *(safe_text(f.sentence) for f in document["findings"]), ""]
    known = {scope: stats for scope, stats in document["scopes"].items() if stats is not None}
    lines.append(f"{'':<14}" + "".join(f"{scope:>10}" for scope in known))
    lines += [f"{s.name:<14}" + "".join(f"{short(stats[s.name]):>10}" for stats in known.values()) for s in STATS]
    lines += ["", f"{'token':<24}{'std':>10}{'absmax':>10}{'channel':>10}"]
    lines += [f"{t['token']:>4} {safe_text(t['text'] or str(t['id'])):<19}{short(t['std']):>10}{short(t['absmax']):>10}"
              f"{short(t['peak_channel']):>10}" for t in document["tokens"][:SHOWN]]
    lines += [""] + [f"{safe_text(w['name'])} {w['type']} {' x '.join(map(str, w['shape']))}" + (
        f": level {short(w['spread'].level)}, the same of other layers {short(w['spread'].least)} to "
        f"{short(w['spread'].largest)}" if w["spread"] else "") for w in document["weights"]]
    if document["lens"]:
        said = ", ".join(ascii(t["text"] or t["id"]) for t in document["lens"])
        lines.append(f"if the model stopped after this layer: {said}")
    return "\n".join(lines) + "\n"
