"""Settle how an imported trace was taken: what its file says, what the user says, what is unknown. It reads no file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from core.model.stages import SUB_FFN, UNKNOWN_SCOPE, Place, parse_scope, scope_positions
from core.sources.imports.stated_model import StatedModel
from core.system.errors import FileError, UsageError
from core.trace.record import is_token_id
from core.trace.stats import ScopeStats, Stats

DEFINITIONS = ("sample", "population")
OPTIONS = {  # fact -> how to say it
    "scope": "--scope all|last|first|rest|pos:N",
    "tokens": "--tokens with the ids that were fed",
    "definition": "--definition sample|population (the std divided by n - 1, or by n)",
}
Fact = TypeVar("Fact")


@dataclass(frozen=True, slots=True)
class Stated:
    """What the user says of a file (--scope, --tokens, --definition, --model); None: nothing."""

    scope: str | None = None
    tokens: tuple[int, ...] | None = None
    definition: str | None = None
    model: StatedModel | None = None


def check_stated(scope: str | None, tokens: Iterable[int] | None, definition: str | None) -> Stated:
    """Check the spelling of what the user says; UsageError."""
    if scope is not None:
        parse_scope(scope)
    if definition is not None and definition not in DEFINITIONS:
        raise UsageError(f"{definition!r} is not a definition of std. Definitions: {', '.join(DEFINITIONS)}.")
    ids = None if tokens is None else tuple(tokens)
    if ids is not None and (not ids or not all(map(is_token_id, ids))):
        raise UsageError("--tokens needs one or more token ids, whole numbers from 0 to 2^31 - 1.")
    if scope is not None and ids is not None and not scope_positions(scope, len(ids)):
        raise UsageError(f"--scope {scope} covers none of the {len(ids)} tokens. Give another scope or all the tokens.")
    return Stated(scope, ids, definition)


def settle_fact(fact: str, in_file: Fact | None, stated: Fact | None) -> Fact | None:
    """Return the fact from whoever says it; UsageError where file and user say different things."""
    if in_file is not None and stated is not None and in_file != stated:
        raise UsageError(f"The file says {fact} {_text(in_file)}, --{fact} says {_text(stated)}. Leave --{fact} out.")
    return stated if in_file is None else in_file


def unknown_notes(**facts: object) -> tuple[str, ...]:
    """List the facts that nobody said, each with the option that says it, or with none."""
    without = [name for name, value in facts.items() if not value and name not in OPTIONS]
    named = {name: how for name, how in OPTIONS.items() if name in facts and not facts[name]}
    notes = [f"{name} is unknown; say it with {how}" for name, how in named.items()]
    return (*notes, *([f"not said by the file: {', '.join(without)}"] if without else ()))


def scope_cells(stats: Mapping[Place, Stats], scope: str | None) -> dict[Place, ScopeStats]:
    """Put each cell's statistics under their scope; logits are the last token's in every producer."""
    return {
        place: ScopeStats({"last" if place[1] == "logits" else scope or UNKNOWN_SCOPE: cell})
        for place, cell in stats.items()
    }


def without_unmeasured(stats: Mapping[Place, Stats]) -> tuple[dict[Place, Stats], tuple[str, ...]]:
    """Drop the sub-FFN slots that were left at zero: missing is missing. An FFN with an output has no zero factors."""
    empty: list[Place] = []
    for layer in sorted({place[0] for place in stats if place[0] is not None}):
        slots = [(layer, stage) for stage in SUB_FFN if (layer, stage) in stats]
        out = stats.get((layer, "ffn_out"))
        if out is not None and out.std and all(not stats[p].std and not stats[p].mean for p in slots):
            empty += slots
    layers = sorted({place[0] for place in empty if place[0] is not None})
    note = f"sub-FFN slots at zero beside a living ffn_out are taken as not measured: layers {layers}"
    return {p: s for p, s in stats.items() if p not in set(empty)}, (note,) if empty else ()


def bad_line(path: Path, line: int, expected: str, found: str) -> FileError:
    """Make the error for a line that is not what the format has there."""
    shown = ascii(found.strip()[:80])
    return FileError(f"{path.name}, line {line}: {expected} was expected, {shown} was found. Export it again, whole.")


def printed_decimals(number: str) -> int:
    """Count the decimals that a number is printed with: 1.25e-3 has 5."""
    mantissa, _, exponent = number.lower().partition("e")
    return max(len(mantissa.partition(".")[2]) - int(exponent or 0), 0)


def printed_precision(numbers: Sequence[str]) -> dict[str, int]:
    """How finely a table prints its numbers: by decimals or by digits, whichever most of them have alike.

    The usual one counts, not the coarsest: one damaged number may not loosen what every other is held to.
    """
    digits = [n for n in map(_significant, numbers) if n]
    decimals, n_decimals = _usual(list(map(printed_decimals, numbers)))
    significant, n_digits = _usual(digits)
    return {"printed_decimals": decimals} if n_decimals >= n_digits else {"printed_digits": significant}


def _usual(counts: Sequence[int]) -> tuple[int, int]:
    """The count that most numbers have, the finest of equals, and how many have it."""
    found = Counter(counts)
    usual = max(found, key=lambda count: (found[count], count), default=0)
    return usual, found[usual]


def _significant(number: str) -> int:
    mantissa = number.lower().partition("e")[0].lstrip("+-").replace(".", "")
    return len(mantissa.lstrip("0"))


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
