"""Records of a bill of damage: what each tensor costs, and what to raise for a budget. bill.py makes them."""

from __future__ import annotations

from dataclasses import dataclass, field

from core.notebook.result import Notebook
from core.system.arrays import Floats

OWN_STEPS, ORIGINAL, EXACT = "own block steps", "original", "exact swaps"  # methods
ESTIMATED = "ESTIMATED"  # heads a recipe that nothing was measured for


@dataclass(frozen=True, slots=True)
class TensorDamage:
    """A tensor's share of the output's KL, in nats a token. rows: each row's part of it, where the method has one."""

    name: str
    layer: int | None
    type: str
    bytes: int
    kl: float
    share: float
    rows: Floats | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Raise:
    """One line of a recipe: bytes more than now, nats that are saved."""

    name: str
    from_type: str
    to_type: str
    bytes: int
    kl_saved: float


@dataclass(frozen=True, slots=True)
class Measured:
    """KL a token on held-out text, of the file and of the file with the recipe."""

    before: float
    after: float
    text: str


@dataclass(frozen=True, slots=True, repr=False)
class Damage(Notebook):
    """The bill. whole: KL of the file from the original on the bill's text, None without one; control: of no swap.

    refusal: why a recipe was asked for and is not given.
    """

    method: str
    text: str
    total: float
    whole: float | None
    control: float
    tensors: tuple[TensorDamage, ...]
    recipe: tuple[Raise, ...] = ()
    measured: Measured | None = None
    refusal: str | None = None
    notes: tuple[str, ...] = ()

    def sentences(self) -> list[str]:
        """What the tensors cost together, by which method, on which text."""
        whole = "" if self.whole is None else f"; the whole file costs {self.whole:.4g}"
        return [f"the tensors cost {self.total:.4g} nats a token by {self.method}{whole}, on {self.text}", *self.notes]

    def rows(self) -> list[dict[str, object]]:
        """The tensors, the dearest first."""
        return [{"name": t.name, "layer": t.layer, "type": t.type, "bytes": t.bytes, "kl": t.kl, "share": t.share}
                for t in self.tensors]
