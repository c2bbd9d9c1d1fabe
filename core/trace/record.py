"""Records of what came of a traced run. What it tells while it runs is events.py's; nothing is run here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from core.model.stages import SCOPES, Place, place_order
from core.notebook.result import Notebook

if TYPE_CHECKING:
    from core.formats.identity import Identity
    from core.trace.stats import Cell


@dataclass(frozen=True, slots=True)
class Token:
    """A token of the input: its id, and its text (None where the file has no usable tokenizer)."""

    id: int
    text: str | None = None


def is_token_id(value: object) -> bool:
    """Say whether a value can be a token's id: no vocabulary has more than 2^31."""
    return type(value) is int and 0 <= value < 1 << 31


@dataclass(frozen=True, slots=True)
class NextToken:
    """A candidate for the next token."""

    id: int
    text: str | None
    logit: float


@dataclass(frozen=True, slots=True)
class CaptureContract:
    """The capture contract: how the numbers were taken. None means unknown, and an unknown fact blocks a proof.

    definition: "sample" (divide by n - 1) or "population". scopes: those the source can show; () is every scope.
    """

    engine: str | None
    arch: str | None
    n_layer: int | None
    d_model: int | None
    n_vocab: int | None
    definition: str | None
    scopes: tuple[str, ...] = ()
    compute: str | None = None
    device: str | None = None
    threads: int | None = None
    kernel: str | None = None  # the kernel path and why
    dtype: str | None = None   # of the values as computed


@dataclass(frozen=True, slots=True, repr=False)
class Trace(Notebook):
    """What a traced run, a bundle or another tool's table says of one forward.

    tokens: () where the source does not say. observed_equals_unobserved: the witness's word; None where left out.
    values: stage -> array [T, width] where the run kept them (torch tensors, or numpy arrays from a bundle).
    """

    name: str  # of the model, for a person
    facts: CaptureContract
    tokens: tuple[Token, ...]
    cells: Mapping[Place, Cell] = field(repr=False)
    top: tuple[NextToken, ...] = ()
    generated: str | None = None
    observed_equals_unobserved: bool | None = None
    planted: str | None = None
    notes: tuple[str, ...] = ()
    values: Mapping[Place, Any] | None = field(default=None, repr=False)
    origin: Mapping[str, Any] = field(default_factory=dict, repr=False)  # file, arch, seed: for the manifest
    identity: Identity | None = field(default=None, repr=False, compare=False)  # of the file that was run here
    layer_kinds: tuple[str, ...] = ()  # a word a layer, such as window and full; () where all are alike

    @property
    def digest(self) -> str | None:
        """Which file it is, by its bytes; None where the source does not say. Waits for that of a file run here."""
        said: str | None = self.origin.get("digest")
        return self.identity.digest() if said is None and self.identity is not None else said

    @property
    def n_layer(self) -> int:
        """Number of layers that have at least one cell, counted from 0."""
        return 1 + max((layer for layer, _ in self.cells if layer is not None), default=-1)

    def sentences(self) -> list[str]:
        """What was run, what comes next, and what the run says of itself."""
        facts = self.facts
        known = (facts.arch, facts.engine, facts.compute, facts.device)
        told = [f"{self.name}: {', '.join(k for k in known if k)}; {self.n_layer} layers, {len(self.tokens)} tokens"]
        told += [f"planted: {self.planted}"] if self.planted else []
        following = ", ".join(repr(t.id if t.text is None else t.text) for t in self.top)
        return [*told, *([f"next: {following}"] if following else []), *self.notes]

    def rows(self) -> list[dict[str, object]]:
        """Every statistic of every stage at every scope, as stats.csv has them."""
        found: list[dict[str, object]] = []
        for layer, stage in sorted(self.cells, key=place_order):
            usual = ("last",) if stage == "logits" else SCOPES
            for scope in dict.fromkeys((*usual, *self.facts.scopes)):
                stats = self.cells[layer, stage].at(scope)
                found += [{"layer": layer, "stage": stage, "scope": scope, **asdict(stats)}] if stats else []
        return found
