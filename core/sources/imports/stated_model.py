"""Take from --model FILE what a dump does not say: architecture, depth, widths, tokens' text, the file's identity.

No weight is read, but for the digest. That the dump was made from this file is the user's word; what contradicts it
is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from core.formats.identity import Identity, stamp_of
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.model.arch import Arch, read_arch
from core.model.stages import place_text
from core.system.errors import UsageError
from core.text.tokenizer import open_tokenizer
from core.trace.record import Token, Trace
from core.trace.stats import ScopeStats, TokenStats

NOT_SAID = "not said by the file: "
SAID = frozenset({"architecture", "depth", "widths", "width", "vocabulary"})  # names of unknown_notes


@dataclass(frozen=True, slots=True)
class StatedModel:
    """The model file that a dump is said to be of."""

    file: ModelFile
    arch: Arch
    identity: Identity

    @property
    def compute(self) -> str:
        """What llama.cpp computes its products in: packed weights are multiplied with activations of 8 bits."""
        plain = all(w.quant == "F32" for w in self.file.weights.values())
        return "f32" if plain else "q8"


def open_stated(path: Path) -> StatedModel:
    """Open the file that --model names; FileError."""
    stamp = stamp_of(path)
    file = open_model(path)
    return StatedModel(file, read_arch(file), Identity(file, stamp))


def with_model(trace: Trace, model: StatedModel) -> Trace:
    """The trace with the model's facts; UsageError where it contradicts what the file says, or the cells' places."""
    arch, facts, name = model.arch, trace.facts, model.file.path.name
    own = {"n_layer": arch.n_layer, "d_model": arch.d_model, "n_vocab": arch.n_vocab}
    for fact, said in own.items():
        found = getattr(facts, fact)
        if found is not None and found != said:
            raise UsageError(f"The file says {fact} {found}, {name} has {said}. "
                             "Give --model the file it was made from.")
    for place, cell in trace.cells.items():
        inside = place[0] is None or place[0] < arch.n_layer
        width = arch.width(*place) if inside else None
        if width is None or (isinstance(cell, TokenStats) and cell.width != width):
            has = f"width {cell.width}" if isinstance(cell, TokenStats) else "a value"
            needs = "no such stage" if width is None else f"width {width}"
            raise UsageError(f"{place_text(place)} has {has}; {name} has {needs} there. "
                             "Give --model the file it was made from.")
        counts = [s.count for s in cell.scopes.values() if s.count is not None] if isinstance(cell, ScopeStats) else []
        if any(count % width for count in counts):
            raise UsageError(f"{place_text(place)} has {counts[0]} values; {name} has width {width} there. "
                             "Give --model the file it was made from.")
    outside = [t.id for t in trace.tokens if t.id >= arch.n_vocab]
    if outside:
        raise UsageError(f"token {outside[0]} is outside the vocabulary of {name}: 0 to {arch.n_vocab - 1}.")
    told = replace(facts, arch=arch.name, n_layer=arch.n_layer, d_model=arch.d_model, n_vocab=arch.n_vocab)
    text_of = open_tokenizer(model.file).token_text
    return replace(
        trace, facts=told, identity=model.identity, notes=_still_unknown(trace.notes),
        tokens=tuple(Token(t.id, t.text if t.text is not None else text_of(t.id)) for t in trace.tokens),
        origin={**trace.origin, "format": model.file.format, "size_bytes": model.file.size_bytes,
                "header_sha256": model.file.header_sha256, "widths": arch.widths, "arch": arch.facts(),
                "weight_types": model.file.types_text(), "stated_model": name})


def _still_unknown(notes: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for note in notes:
        if note.startswith(NOT_SAID):
            left = [name for name in note.removeprefix(NOT_SAID).split(", ") if name not in SAID]
            note = NOT_SAID + ", ".join(left) if left else ""
        found += [note] if note else []
    return tuple(found)
