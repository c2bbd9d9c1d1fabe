"""Say what the files of two sides differ in, before any value: the keys that change numbers, and the decoded weights.

And where each is read first, so that a verdict names that place. It judges no values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from core.model.stages import STAGES, Place, place_order
from core.proof.weight_diff import KeyDiff, WeightDiff, key_diffs, weight_diffs
from core.system.cancel import IsCancelled
from core.trace.measures import Difference, State
from core.trace.run import Side

NAMED = 3  # of the keys and weights in a reason; the rest are counted


@dataclass(frozen=True, slots=True)
class FileDiff:
    """What differs between the files of A and B; weights: those of other values, or of another type.

    is_tied: the output head is the token embedding on a side.
    """

    keys: Sequence[KeyDiff] = ()
    weights: Sequence[WeightDiff] = ()
    is_tied: bool = False

    @property
    def changed(self) -> list[WeightDiff]:
        """The weights that rounding does not explain."""
        return [w for w in self.weights if not w.is_explained]

    @property
    def rounded(self) -> list[WeightDiff]:
        """The weights of other values that rounding explains."""
        return [w for w in self.weights if w.is_explained and not w.is_equal]

    @property
    def chosen(self) -> list[WeightDiff]:
        """The weights that rounding explains, and those of equal values in another type: q8 rounds by the type."""
        return self.rounded or [w for w in self.weights if w.is_equal]

    def sentences(self) -> list[str]:
        """Each key, and each weight that rounding does not explain, in words."""
        return [k.sentence for k in self.keys] + [w.sentence for w in self.changed]

    def places(self, name: str) -> list[Place]:
        """The places that read a tensor, in order of computation."""
        return [p for p in places_reading(name) if self.is_tied or p[1] != "logits" or not name.startswith("token_")]

    def reads_changed(self, place: Place) -> bool:
        """Whether a place reads a weight of another value or type."""
        return any(place in self.places(w.name) for w in self.weights)

    def first_place(self, cells: Mapping[Place, Difference], weights: Sequence[WeightDiff]) -> Place | None:
        """Where the first of the keys and of these weights is read; a weight where it shows first, if it does."""
        found = [k.place for k in self.keys if k.place is not None]
        for weight in weights:
            places = self.places(weight.name)
            shown = [p for p in places if p in cells and cells[p].state is not State.SAME]
            found += (shown or places)[:1]
        return min(found, key=place_order, default=None)


def diff_files(a: Side, b: Side, cancelled: IsCancelled) -> FileDiff:
    """Compare the files of two sides; one file that both read has nothing to compare."""
    left, right = a.model, b.model
    if left.file is right.file:
        return FileDiff()
    return FileDiff(key_diffs(left.arch, right.arch), weight_diffs(left.file, right.file, cancelled),
                    left.arch.tied or right.arch.tied)


def places_reading(name: str) -> list[Place]:
    """The places whose stage may read a tensor of that name, in order of computation."""
    parts = name.split(".")
    layer, base = (int(parts[1]), parts[2]) if parts[0] == "blk" else (None, parts[0])
    if base == "rope_freqs":
        return [(0, "q_rope"), (0, "k_rope")]
    return [(layer, s.name) for s in STAGES if s.whole == (layer is None) and base in (*s.weights, s.tied)]


def listed(sentences: Sequence[str]) -> str:
    """The first few sentences as one, the rest counted."""
    more = len(sentences) - NAMED
    return "; ".join(sentences[:NAMED]) + (f"; and {more} more" if more > 0 else "")
