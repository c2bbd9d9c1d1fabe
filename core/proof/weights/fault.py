"""Records of what a check finds beside its stages' errors: faults of the weights, and a value that overflowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.model.stages import Place, place_text

LARGEST = {"f16": ("float16", 65504.0)}  # of a compute that does not keep its stages in float32
FLOAT32 = ("float32", 3.4028234663852886e38)


@dataclass(frozen=True, slots=True)
class WeightFault:
    """A fault that a file's bytes show by themselves. place: where the weight is read first; channel: there, if one."""

    place: Place
    channel: int | None
    sentence: str


@dataclass(frozen=True, slots=True)
class WeightScan:
    """What the weights that a run reads say by themselves.

    decoded: quant type -> rows that the second decoder read alike. alone: types that it does not know.
    lone: the single rows of zeros, which are no fault by themselves, in words; "" where there is none.
    """

    faults: tuple[WeightFault, ...] = ()
    decoded: Mapping[str, int] = field(default_factory=dict)
    alone: tuple[str, ...] = ()
    lone: str = ""

    @property
    def decoded_text(self) -> str:
        """Say how many rows of which types were decoded twice; "" where nothing was scanned."""
        rows = ", ".join(f"{n} of {quant}" for quant, n in sorted(self.decoded.items()))
        both = f"a second decoder (gguf-py) gives the same values, rows: {rows}" if rows else ""
        rest = f"{', '.join(self.alone)}: read by one decoder only" if self.alone else ""
        return "; ".join(text for text in (both, rest) if text)


@dataclass(frozen=True, slots=True)
class Overflow:
    """The first value that the compute could not hold: what it is in float64, of finite inputs and finite weights."""

    place: Place
    token: int
    channel: int
    value: float
    compute: str

    @property
    def sentence(self) -> str:
        """Name the place, the value and the limit."""
        kind, largest = LARGEST.get(self.compute, FLOAT32)
        return (f"{place_text(self.place)} overflows at token {self.token}, channel {self.channel}: {self.value:.6g} "
                f"is Inf in {kind}, which ends at {largest:.6g}")
