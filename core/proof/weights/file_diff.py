"""Say what the files of two sides differ in, before any value: the keys that change numbers, and the decoded weights.

And where each is read, so that a verdict names that place. It judges no values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from core.audit.weights.description import DiffKind
from core.model.readers import first_reader_of_key, readers
from core.model.stages import Place, place_order
from core.proof.weights.weight_diff import KeyDiff, WeightDiff, described, differing_keys, weight_diffs
from core.system.cancel import IsCancelled
from core.trace.measures import Difference, State
from core.trace.run import Side

NAMED = 3   # of the keys and weights in a reason; the rest are counted
MOST = 0.5  # of all tensors differ, and none by a known fault: another model


@dataclass(frozen=True, slots=True)
class FileDiff:
    """All that changes numbers and is not the same in two files.

    weights: those of other values, or of another type. readers: the places that read each. n_tensor: of both together.
    """

    keys: Sequence[KeyDiff] = ()
    weights: Sequence[WeightDiff] = ()
    n_tensor: int = 0
    readers: Mapping[str, Sequence[Place]] = field(default_factory=dict, repr=False)

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

    @property
    def is_other_model(self) -> bool:
        """Whether most tensors differ and none of those described by a known fault: a fine-tune, another model."""
        told = {w.told.kind for w in self.changed if w.told is not None}
        return len(self.changed) > MOST * self.n_tensor and told == {DiffKind.SIZE}

    def sentences(self) -> list[str]:
        """Each key, and each weight that rounding does not explain, in words."""
        return [k.sentence for k in self.keys] + [w.sentence for w in _described_first(self.changed)]

    def reads_changed(self, place: Place) -> bool:
        """Whether a place reads a weight of another value or type."""
        return any(place in places for places in self.readers.values())

    def first_place(self, cells: Mapping[Place, Difference], weights: Sequence[WeightDiff]) -> Place | None:
        """Where the first of the keys and of these weights is read; a weight where it shows first, if it does."""
        found = [place for k in self.keys if (place := first_reader_of_key(k.key)) is not None]
        for weight in weights:
            places = self.readers[weight.name]
            shown = [p for p in places if p in cells and cells[p].state is not State.SAME]
            found += (shown or places)[:1]
        return min(found, key=place_order, default=None)


def diff_files(a: Side, b: Side, cancelled: IsCancelled) -> FileDiff:
    """Compare the files of two sides; one file that both read has nothing to compare."""
    left, right = a.model, b.model
    if left.file is right.file:
        return FileDiff()
    heads = tuple(dict.fromkeys((left.arch.head_dim, left.arch.rope.dim)))
    weights = described(weight_diffs(left.file, right.file, cancelled), left.file, right.file, heads, cancelled)
    read_by = {w.name: sorted({place for side in (left, right) for place in readers(side.file, side.arch, w.name)},
                              key=place_order) for w in weights}
    return FileDiff(differing_keys(asdict(left.arch), asdict(right.arch)), weights,
                    len({*left.file.weights, *right.file.weights}), read_by)


def listed(sentences: Sequence[str]) -> str:
    """The first few sentences as one, the rest counted."""
    more = len(sentences) - NAMED
    return "; ".join(sentences[:NAMED]) + (f"; and {more} more" if more > 0 else "")


def list_weights(weights: Sequence[WeightDiff]) -> str:
    """Name the first few weights, those that are described before the others, and count the rest."""
    return "weights: " + listed([w.sentence for w in _described_first(weights)])


def _described_first(weights: Sequence[WeightDiff]) -> list[WeightDiff]:
    return sorted(weights, key=lambda w: w.told is None)
