"""The reports of kl, damage and audit as pages: the sum first, then what is worst, then every row."""

from __future__ import annotations

import re
from dataclasses import fields

from core.audit.audit_file import Audit
from core.audit.finding import Finding
from core.bundle.audits import audit_word, counted, fact_lines
from core.bundle.damage_document import cache_lines, recipe_lines
from core.bundle.page import Bullets, Code, Grid, GridCell, Page, Section, Sentence, Table, Tone
from core.bundle.trace_page import csv_rows, repeat_section, shade
from core.damage.result import Damage, TensorDamage
from core.damage.run_kl import KlResult
from core.damage.worst import text_of
from core.system.numbers import short
from core.trace.finding import ABSENT, OK

BLOCK = re.compile(r"blk\.[0-9]+\.(.*)\.weight")
LEGEND = "nats a token that the tensor costs; shaded by the multiple of an even share; - not billed"
HOW = ("A tensor's figure is KL(original || file), in nats a token, that its own rounding adds on the text named "
       "above; shares add up to 100 %. A bill is of its text.")


def damage_page(found: Damage, file: str, table: str, repeat: str) -> Page:
    """The page of a bill. table: tensors.csv."""
    rows = csv_rows(table)
    columns = tuple(rows[0]) if rows else ()
    whole = "" if found.whole is None else f"; the whole file costs {short(found.whole)}"
    headline = (f"Its tensors cost {short(found.total)} nats a token by {found.method}{whole}, on {found.text}.")
    told = recipe_lines(found)
    recipe = (Section("Recipe", (Sentence(told[0]), *((Code("\n".join(told[1:])),) if told[1:] else ())),
                      "recipe"),) if told else ()
    every = tuple(tuple(row[c] for c in columns) for row in rows)
    return Page(f"{file}: what its rounding costs", "", Tone.PLAIN, headline, (
        Section("Measured", (Table(("total", "whole", "control"), ((
            str(found.total), "" if found.whole is None else str(found.whole), str(found.control)),)),
            Sentence(HOW)), "measured"),
        Section("The dearest tensors", (Table(columns, every[:20]),), "dearest"), *recipe,
        *((Section("Notes", (Bullets(found.notes),), "notes"),) if found.notes else ()),
        *repeat_section(repeat),
        Section("The grid", (_grid(found),), "grid", is_detail=True),
        Section("Every tensor", (Table(columns, every, tuple(row["name"] for row in rows)),), "tensors",
                is_detail=True)))


def audit_page(found: Audit, table: str, repeat: str) -> Page:
    """The page of an audit. table: findings.csv."""
    proofs, hints = found.proofs, found.hints
    beside = f" beside {found.original}" if found.original else ""
    tone = Tone.BAD if proofs else Tone.WATCH if hints else Tone.PLAIN
    first = f"{found.findings[0].sentence} " if found.findings else ""
    rows = csv_rows(table)
    columns = tuple(f.name for f in fields(Finding) if f.name not in ("strength", "sentence", "rule"))
    every = tuple(tuple(row[c] for c in columns) for row in rows)
    listed = [Section(title, (Bullets(tuple(f"{f.sentence} ({f.kind}: {f.rule})" for f in each)),), anchor)
              for title, anchor, each in (("Proofs", "proofs", proofs),
                                          ("Hints, for a person to weigh", "hints", hints)) if each]
    return Page(f"Audit of {found.name}{beside}", audit_word(found), tone, f"{first}{counted(found)}", (
        *listed, Section("The file", (Bullets(tuple(fact_lines(found))),), "facts"), *repeat_section(repeat),
        *((Section("Where each is", (Table(columns, every),), "places"),) if every else ())))


def _grid(found: Damage) -> Grid:
    """Layers down, kinds of tensor across."""
    cells = {(t.layer, m[1]): t for t in found.tensors if (m := BLOCK.fullmatch(t.name))}
    across = tuple(sorted({kind for _, kind in cells}))
    even = found.total / len(found.tensors) if found.tensors else 0.0
    empty = GridCell("-", ABSENT, "", Tone.ABSENT, "")
    layers = sorted({layer for layer, _ in cells if layer is not None})
    return Grid(across, tuple(
        (str(i), tuple(_cell(cells[i, kind], even) if (i, kind) in cells else empty for kind in across))
        for i in layers), LEGEND)


def _cell(tensor: TensorDamage, even: float) -> GridCell:
    return GridCell(short(tensor.kl), OK, str(tensor.kl), Tone.PLAIN, tensor.name,
                    shade(tensor.kl / even if even else None, 2.0))


def kl_page(found: KlResult, repeat: str) -> Page:
    """The page of a KL over a text."""
    s = found.summary
    headline = (f"{short(s.mean)} nats a token (95 %: {short(s.interval[0])} to {short(s.interval[1])}) over "
                f"{s.tokens} tokens of {found.text}; the same first token {s.top1:.1%} of the time.")
    numbers = [(f.name, str(getattr(s, f.name))) for f in fields(s)
               if f.name not in ("interval", "buckets", "positions")]
    worst = tuple((str(w.position), str(w.token), w.text or "", str(w.kl),
                   "" if w.cause is None else text_of(w.cause)) for w in found.worst)
    columns = ("from", "to", "tokens", "mean", "top1")
    buckets, positions = (tuple(tuple("" if b[c] is None else str(b[c]) for c in columns) for b in each)
                          for each in (s.buckets, s.positions))
    heads = tuple((str(c.layer), c.part, str(c.head), str(c.kl)) for c in sorted(found.cache, key=lambda c: -c.kl))
    return Page(f"KL of B {found.b} from A {found.a}", "", Tone.PLAIN, headline, (
        Section("Measured", (Table(("what", "value"), (*numbers, ("interval from", str(s.interval[0])),
                                                       ("interval to", str(s.interval[1])))),), "measured"),
        Section("By A's confidence", (Table(columns, buckets),), "buckets"),
        Section("By position in a chunk", (Table(columns, positions),), "positions"),
        *((Section("What the cache costs, estimated", (
            Sentence(" ".join(cache_lines(found.cache)[1:])),
            Table(("layer", "part", "head", "kl"), heads)), "cache"),) if heads else ()),
        Section("Worst tokens", (Table(("position", "token", "text", "kl", "cause"), worst),), "worst"),
        *repeat_section(repeat)))
