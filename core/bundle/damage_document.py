"""The documents of kl and damage: what --json prints and a folder holds, and the same as text."""

from __future__ import annotations

from typing import Any

from core.bundle.manifest import SCHEMA
from core.damage.recipe import quantize_lines
from core.damage.result import ESTIMATED, Damage
from core.system.numbers import short
from core.system.safe_text import safe_text

SHOWN = 20  # tensors of a bill that are printed


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
    return "\n".join([*lines, *_recipe_lines(found)]) + "\n"


def _recipe_lines(found: Damage) -> list[str]:
    if found.refusal:
        return ["", f"No recipe: {found.refusal}."]
    if not found.recipe:
        return []
    size = sum(r.bytes for r in found.recipe)
    told = (f"{ESTIMATED}: nothing is measured without an original" if found.measured is None else
            f"KL {short(found.measured.before)} before, {short(found.measured.after)} after, on {found.measured.text}")
    return ["", f"For {size} bytes more ({told}):", *quantize_lines(found.recipe)]
