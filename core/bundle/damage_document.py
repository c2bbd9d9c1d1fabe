"""The documents of kl and damage: what --json prints and a folder holds, and the same as text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from core.bundle.manifest import SCHEMA
from core.damage.cache_bill import HeadCost
from core.damage.recipe import quantize_lines
from core.damage.result import ESTIMATED, Damage
from core.damage.run_kl import KlResult
from core.damage.worst import Cause, text_of
from core.model.stages import place_text
from core.system.numbers import short
from core.system.safe_text import safe_text

SHOWN = 20  # tensors of a bill that are printed
HEADS_SHOWN = 5  # of a cache
PARTS = {"k": "keys", "v": "values", "q": "queries as they meet the keys"}


def damage_document(found: Damage, file: str, original: str | None) -> dict[str, Any]:
    """The document of `damage --json`."""
    return {
        "schema": SCHEMA, "file": file, "original": original, "method": found.method, "text": found.text,
        "total": found.total, "whole": found.whole, "control": found.control,
        "tensors": [{"name": t.name, "layer": t.layer, "type": t.type, "bytes": t.bytes, "kl": t.kl, "share": t.share}
                    for t in found.tensors],
        "recipe": [{"name": r.name, "from": r.from_type, "to": r.to_type, "bytes": r.bytes, "kl_saved": r.kl_saved}
                   for r in found.recipe],
        "measured": found.measured, "refusal": found.refusal,
    }


def damage_text(found: Damage, file: str) -> str:
    """The bill for a person, the dearest tensors first, in 80 columns."""
    whole = "not measured: no original" if found.whole is None else f"{short(found.whole)} nats a token"
    lines = [f"{safe_text(file)}: what its rounding costs, by {found.method}, on {safe_text(found.text)}",
             f"sum of the tensors {short(found.total)} nats a token; the whole file: {whole}; "
             f"control (no swap): {found.control:g}", "",
             f"{'tensor':<40} {'type':<8} {'bytes':>11} {'nats':>8} {'share':>7}"]
    lines += [f"{safe_text(t.name):<40} {t.type:<8} {t.bytes:>11} {short(t.kl):>8} {t.share:>7.1%}"
              for t in found.tensors[:SHOWN]]
    if len(found.tensors) > SHOWN:
        rest = found.tensors[SHOWN:]
        lines.append(f"{f'and {len(rest)} more':<40} {'':<8} {sum(t.bytes for t in rest):>11} "
                     f"{short(sum(t.kl for t in rest)):>8} {sum(t.share for t in rest):>7.1%}")
    return "\n".join([*lines, *(['', *told] if (told := recipe_lines(found)) else [])]) + "\n"


def recipe_lines(found: Damage) -> list[str]:
    """What the recipe costs and brings, then its options of llama-quantize; or why there is none."""
    if found.refusal:
        return [f"No recipe: {safe_text(found.refusal)}."]
    if not found.recipe:
        return []
    size = sum(r.bytes for r in found.recipe)
    m = found.measured
    told = (f"{ESTIMATED}: nothing is measured without an original" if m is None else
            f"KL {short(m.before)} before, {short(m.after)} after, on {safe_text(m.text)}")
    return [f"For {size} bytes more ({told}):", *quantize_lines(found.recipe)]


def cache_lines(costs: Sequence[HeadCost]) -> list[str]:
    """What a quantised cache costs: its parts, then the dearest layers and heads."""
    if not costs:
        return []
    parts = {part: sum(c.kl for c in costs if c.part == part) for part in PARTS}
    dearest = sorted(costs, key=lambda c: -c.kl)[:HEADS_SHOWN]
    return ["", "estimated nats a token of the cache: " + ", ".join(
                f"{PARTS[part]} {short(kl)}" for part, kl in parts.items()),
            "dearest heads: " + ", ".join(f"{c.layer}.{c.part}[{c.head}] {short(c.kl)}" for c in dearest)]


def kl_document(found: KlResult) -> dict[str, Any]:
    """The document of `kl --json`."""
    s = found.summary
    named = ("tokens", "mean", "median", "p90", "p99", "p999", "max", "top1", "ppl_a", "ppl_b", "interval", "floor",
             "buckets", "positions")
    worst = [{"position": w.position, "token": w.token, "text": w.text, "kl": w.kl,
              "cause": None if w.cause is None else _cause(w.cause)} for w in found.worst]
    return {"schema": SCHEMA, "a": found.a, "b": found.b, "text": found.text,
            **{name: getattr(s, name) for name in named}, "worst": worst,
            "cache": [{"layer": c.layer, "part": c.part, "head": c.head, "kl": c.kl} for c in found.cache]}


def _cause(cause: Cause) -> dict[str, Any]:
    return {"place": None if cause.place is None else place_text(cause.place), "recovered": cause.recovered,
            "tensors": list(cause.tensors),
            "nearest": {"tensors": list(cause.nearest), "recovered": cause.nearest_recovered}}


def kl_text(found: KlResult) -> str:
    """The summary and the worst tokens, for a person."""
    s = found.summary
    lines = [f"KL of B {safe_text(found.b)} from A {safe_text(found.a)}, {s.tokens} tokens of {safe_text(found.text)}",
             f"mean {short(s.mean)} nats a token (95 %: {short(s.interval[0])} to {short(s.interval[1])}; "
             f"floor {short(s.floor)})",
             f"median {short(s.median)}  p90 {short(s.p90)}  p99 {short(s.p99)}  p99.9 {short(s.p999)}  "
             f"max {short(s.max)}",
             f"same first token {s.top1:.1%}; perplexity A {s.ppl_a:.4g}, B {s.ppl_b:.4g}", "",
             "A's confidence    tokens     KL  same"]
    lines += [f"{b['from']:>6g} to {b['to']:<6g} {b['tokens']:>8} {short(b['mean']):>6} "
              f"{'-' if b['top1'] is None else format(b['top1'], '.0%'):>5}" for b in s.buckets]
    lines += ["", "position in chunk tokens     KL  same"]
    lines += [f"{b['from']:>6g} to {b['to']:<6g} {b['tokens']:>8} {short(b['mean']):>6} "
              f"{'-' if b['top1'] is None else format(b['top1'], '.0%'):>5}" for b in s.positions]
    lines += cache_lines(found.cache)
    lines += ["", "Worst tokens:"] if found.worst else []
    for w in found.worst:
        cause = "" if w.cause is None else f"  {text_of(w.cause)}"
        lines.append(f"{w.position:>7} {short(w.kl):>7} {safe_text(repr(w.text)):<16}{safe_text(cause)}")
    return "\n".join(lines) + "\n"
