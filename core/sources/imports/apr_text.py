"""Read the text of `apr trace FILE --payload`: mean and std of every stage, printed with four decimals.

Not all of it: the legend and the verdict lines at its end are left alone. Its rules: sample std over finite values; an
.apr is traced over all tokens of the prompt, a .gguf over the last; the logits are always the last token's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from core.model.stages import GRID_STAGES, SUB_FFN, UNKNOWN_SCOPE, Place
from core.sources.imports.stated_facts import (
    Stated,
    bad_line,
    printed_decimals,
    printed_precision,
    scope_cells,
    settle_fact,
    unknown_notes,
    without_unmeasured,
)
from core.system.errors import FileError
from core.trace.record import CaptureContract, NextToken, Token, Trace
from core.trace.stats import Stats

HEADINGS = {  # how a line begins that opens a section
    "EMBEDDING:": "embedding", "LAYER-BY-LAYER": "layers", "FINAL LAYER NORM": "final_norm", "LM_HEAD": "logits",
    "Top ": "top", "TRACE SUMMARY": "summary",
}
SCOPE_OF_FORMAT = {"apr": "all", "gguf": "last"}  # aprender's two forwards, by the file they were given
DEFINITION = "sample"

_NUMBER = r"([-+]?(?:[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]{1,4})?|nan|inf))"
_LAYER = re.compile(r"Layer\s+([0-9]{1,6})/([0-9]{1,6})\s*\[([\w-]+)\]$")
_ROW = re.compile(rf"(\w+)\s*:\s*mean=\s*{_NUMBER}\s+std=\s*{_NUMBER}$", re.IGNORECASE)
_RANGE = re.compile(rf"Range:\s*\[{_NUMBER},\s*{_NUMBER}\]$", re.IGNORECASE)
_MEAN = re.compile(rf"Mean:\s*{_NUMBER}(?:,\s*Std:\s*{_NUMBER})?$", re.IGNORECASE)
_L2 = re.compile(rf"L2 norm:\s*{_NUMBER}$", re.IGNORECASE)
_TOP = re.compile(rf"[0-9]+\.\s*token_id=([0-9]{{1,9}}),\s*logit=\s*{_NUMBER}(?:\s.*)?$", re.IGNORECASE)
_COUNT = r"\s*([0-9]{1,12})$"

Lines = list[tuple[int, str]]


@dataclass(slots=True)
class _Sections:
    """The lines of a text by section; head is everything before the first heading."""

    path: Path
    lines: dict[str, Lines] = field(default_factory=lambda: {"head": []})
    last_line: int = 0

    def find(self, section: str, pattern: str | re.Pattern[str]) -> tuple[int, re.Match[str]] | None:
        for number, line in self.lines.get(section, ()):
            found = re.match(pattern, line)
            if found:
                return number, found
        return None

    def first_match(self, pattern: str, section: str = "head") -> str | None:
        found = self.find(section, pattern)
        return found[1][1] if found else None

    def count(self, label: str, section: str = "head") -> int | None:
        text = self.first_match(label + ":" + _COUNT, section)
        return int(text) if text is not None else None


def read_apr_text(text: str, path: Path, stated: Stated) -> Trace:
    """Read the whole text; FileError names the line that is not as expected, or where the text ends too early."""
    sections = _split(text, path)
    stats, n_layer, stopped, printed = _layers(sections)
    if sections.count("Layers") not in (None, n_layer):
        raise FileError(f"{path.name} says {sections.count('Layers')} layers, then {n_layer}. Export the trace again.")
    for heading, stage in HEADINGS.items():
        if stage in ("embedding", "final_norm", "logits") and stage in sections.lines:
            stats[None, stage] = _whole(sections, stage)
        elif stage in ("final_norm", "logits", "top") and stage not in sections.lines and not stopped:
            raise _cut_short(sections, f"the section {heading.strip(' :')}")
    scope, scope_note = _scope(sections, stated)
    tokens = settle_fact("tokens", _tokens(sections), stated.tokens)
    definition = stated.definition or DEFINITION
    d_model = sections.count("Hidden dim")
    n_vocab = sections.count("Vocab size") or sections.count("Vocab size", "logits")
    measured, notes = without_unmeasured(stats)
    facts = CaptureContract("aprender", None, n_layer, d_model, n_vocab, definition, scopes=(scope or UNKNOWN_SCOPE,))
    unknown = unknown_notes(
        scope=scope, tokens=tokens, definition=definition, architecture=None, width=d_model, vocabulary=n_vocab,
        compute=None, device=None,
    )
    model = sections.first_match(r"Model:\s*(.+)$")
    origin = {
        "kind": "apr trace --payload, text", **printed_precision(printed), "model": model,
        "prompt": sections.first_match(r'Test prompt:\s*"(.*)"$'), "n_head": sections.count("Heads"),
    }
    return Trace(
        name=PurePosixPath(model).stem if model else path.stem, facts=facts,
        tokens=tuple(Token(id) for id in tokens or ()), cells=scope_cells(measured, scope), top=_top(sections, n_vocab),
        notes=(*scope_note, *stopped, *notes, *unknown), origin={k: v for k, v in origin.items() if v is not None},
    )


def _split(text: str, path: Path) -> _Sections:
    sections = _Sections(path)
    current = sections.lines["head"]
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line:
            continue
        sections.last_line = number
        name = next((name for begins, name in HEADINGS.items() if line.startswith(begins)), None)
        if name is None and "layers" not in sections.lines and _LAYER.match(line):
            name = "layers"  # a text whose headings were cut away
            sections.lines[name] = current = []
        elif name is not None:
            if name in sections.lines:
                raise bad_line(path, number, "one trace, each heading once,", line)
            sections.lines[name] = current = []
            continue
        current.append((number, line))
    return sections


def _layers(sections: _Sections) -> tuple[dict[Place, Stats], int, tuple[str, ...], list[str]]:
    """Return the layers' cells, how many layers, a note where the tool itself stopped early, and the numbers' texts."""
    path, stats, printed = sections.path, dict[Place, Stats](), list[str]()
    layer, total, status, number = -1, 0, "", 0
    for number, line in sections.lines.get("layers", ()):
        found = _LAYER.match(line)
        row = _ROW.match(line)
        if found:
            _check_complete(path, number, line, layer, status, stats)
            if status == "ANOMALY" or int(found[1]) != layer + 1 or int(found[2]) != (total or int(found[2])):
                expected = "the end (ANOMALY stops a trace)" if status == "ANOMALY" else f"layer {layer + 1}"
                raise bad_line(path, number, expected, line)
            layer, total, status = int(found[1]), int(found[2]), found[3]
        elif row and layer >= 0:
            place = (layer, row[1])
            if row[1] not in GRID_STAGES or place in stats:
                raise bad_line(path, number, f"a new stage of layer {layer} ({', '.join(GRID_STAGES)})", line)
            if status == "ANOMALY" and not all(math.isfinite(float(row[i])) for i in (2, 3)):
                continue  # a statistic that could not be taken: absent
            stats[place] = _moments(path, number, line, row[2], row[3])
            printed += [row[2], row[3]]
        elif status != "ANOMALY" and not line.startswith("Legend:"):
            raise bad_line(path, number, "a line `stage: mean= ... std= ...` or `Layer i/n [status]`", line)
    _check_complete(path, number, "the end of the layers", layer, status, stats)
    if layer + 1 < total and status != "ANOMALY":
        raise _cut_short(sections, f"layer {layer + 1} of {total}")
    if layer < 0:
        raise _cut_short(sections, "layer 0")
    if layer >= total:
        raise FileError(f"{path.name} has layer {layer} of {total}; layers count from 0. Export the trace again.")
    stopped = (f"the tool met NaN or Inf in layer {layer} and stopped there",) if status == "ANOMALY" else ()
    return stats, total, stopped, printed


def _check_complete(path: Path, number: int, line: str, layer: int, status: str, stats: dict[Place, Stats]) -> None:
    missing = [stage for stage in GRID_STAGES if stage not in SUB_FFN and (layer, stage) not in stats]
    if layer >= 0 and missing and status != "ANOMALY":
        raise bad_line(path, number, f"{missing[0]} of layer {layer}", line)


def _whole(sections: _Sections, stage: str) -> Stats:
    """Read a whole-model section: a range, a mean, and a std (embedding, final norm) or an L2 norm (logits)."""
    path = sections.path
    at, edges = _need(sections, stage, _RANGE, "a range")
    low, high = (_finite(path, at, edges[0], edge) for edge in edges.groups())
    at, row = _need(sections, stage, _MEAN, "a mean")
    if stage == "logits":
        l2_at, l2 = _need(sections, stage, _L2, "an L2 norm")
        taken = Stats(mean=_finite(path, at, row[0], row[1]), l2=_finite(path, l2_at, l2[0], l2[1]))
        taken = replace(taken, count=sections.count("Vocab size", stage))
    elif row[2] is None:
        raise _cut_short(sections, f"a std under {stage}")
    else:
        taken = _moments(path, at, row[0], row[1], row[2])
    return replace(taken, min=low, max=high, absmax=max(abs(low), abs(high)))


def _need(sections: _Sections, section: str, pattern: re.Pattern[str], what: str) -> tuple[int, re.Match[str]]:
    found = sections.find(section, pattern)
    if found is None:
        raise _cut_short(sections, f"{what} under {section}")
    return found


def _moments(path: Path, number: int, line: str, mean: str, std: str) -> Stats:
    if float(std) < 0:
        raise bad_line(path, number, "a std of 0 or above", line)
    return Stats(mean=_finite(path, number, line, mean), std=_finite(path, number, line, std))


def _finite(path: Path, number: int, line: str, text: str) -> float:
    if not math.isfinite(float(text)):
        raise bad_line(path, number, "a finite number (statistics are over finite values)", line)
    return float(text)


def _scope(sections: _Sections, stated: Stated) -> tuple[str | None, tuple[str, ...]]:
    name = sections.first_match(r"Format:\s*(\w+)") or sections.first_match(r"Model:\s*.*\.(\w+)$") or ""
    usual = SCOPE_OF_FORMAT.get(name.lower())
    if stated.scope is None:
        return usual, (f"scope {usual}: apr trace of a .{name.lower()} covers it",) if usual else ()
    if usual not in (None, stated.scope):
        return stated.scope, (f"--scope says {stated.scope}; apr trace of a .{name.lower()} usually covers {usual}",)
    return stated.scope, ()


def _tokens(sections: _Sections) -> tuple[int, ...] | None:
    found = sections.find("head", r"Encoded tokens:\s*(.*)$")
    if found is None:
        return None
    ids = re.fullmatch(r"\[\s*([0-9]{1,9}(?:\s*,\s*[0-9]{1,9})*)\s*\]", found[1][1])
    if ids is None:
        raise bad_line(sections.path, found[0], "token ids as [1, 2, 3]", found[1][0])
    return tuple(int(id) for id in ids[1].split(","))


def _top(sections: _Sections, n_vocab: int | None) -> tuple[NextToken, ...]:
    top, decimals = [], set()
    for number, line in sections.lines.get("top", ()):
        found = _TOP.match(line)
        if found is None:
            raise bad_line(sections.path, number, "`1. token_id=..., logit=...`", line)
        top.append(NextToken(int(found[1]), None, _finite(sections.path, number, line, found[2])))
        decimals.add(printed_decimals(found[2]))
    if "top" in sections.lines and (len(top) < min(5, n_vocab or 5) or len(decimals) > 1):
        raise _cut_short(sections, "five predictions")
    return tuple(top)


def _cut_short(sections: _Sections, missing: str) -> FileError:
    return FileError(
        f"{sections.path.name} is cut short or damaged: it ends at line {sections.last_line} without {missing}. "
        "Export the trace again, whole."
    )
