"""Records of a rule of the audit and of what it is held against. The rules: proofs.py, key_rules.py, hints."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.audit.blocks import BlockScan
from core.audit.finding import Finding, Strength
from core.formats.model_file import ModelFile
from core.model.arch import Arch

if TYPE_CHECKING:
    from core.audit.profiles import Profile  # which imports torch

MOST_DIGITS = 10  # of a layer in a tensor's name


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a file when a rule is asked. arch: None where this build does not run the file.

    blocks: of each tensor, by name. profiles: the same, decoded; empty where nothing was decoded.
    """

    file: ModelFile
    arch: Arch | None
    blocks: Mapping[str, BlockScan] = field(default_factory=dict)
    profiles: Mapping[str, Profile] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Spot:
    """Where a rule is broken, and by how much. words: what the rule's sentence asks for beside these. layer: without a
    tensor."""

    tensor: str | None = None
    measured: float | None = None
    row: int | None = None
    block: int | None = None
    words: Mapping[str, object] = field(default_factory=dict)
    layer: int | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: find says where the file breaks it; sentence is filled with the spot's fields and words.

    about: the rule in words, as a finding carries it.
    """

    kind: str
    strength: Strength
    find: Callable[[Seen], Iterable[Spot]]
    sentence: str
    about: str


def hold(rules: Iterable[Rule], seen: Seen) -> list[Finding]:
    """Hold a file to each rule, in their order."""
    return [_finding(rule, spot) for rule in rules for spot in rule.find(seen)]


def layer_of(name: str) -> int | None:
    """The layer of a tensor's name: blk.3.ffn_up.weight is of layer 3; None of the whole model."""
    parts = name.split(".")
    is_layer = len(parts) > 2 and parts[0] == "blk" and parts[1].isascii() and parts[1].isdecimal() and (
        len(parts[1]) < MOST_DIGITS)
    return int(parts[1]) if is_layer else None


def role_of(name: str) -> str:
    """A tensor's name without its layer: ffn_up.weight."""
    return name if layer_of(name) is None else name.split(".", 2)[2]


def _finding(rule: Rule, spot: Spot) -> Finding:
    sentence = rule.sentence.format(tensor=spot.tensor, measured=spot.measured, row=spot.row, block=spot.block,
                                    **spot.words)
    layer = spot.layer if spot.tensor is None else layer_of(spot.tensor)
    return Finding(rule.kind, rule.strength, sentence, rule.about, spot.measured, spot.tensor, layer, spot.row,
                   spot.block)
