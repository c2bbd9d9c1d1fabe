"""Read a log of llama-eval-callback or llama-debug: the sum of every node, and the first and last of its numbers.

A node: NAME = (TYPE) OP(SOURCE{..}, SOURCE{..}}) = {W, T, 1, 1}, rows of numbers, "sum = S". That tells a stage's mean,
S / count, whether it holds NaN, and the values at either end of the first and last tokens. A stage is known by the
weight that its node reads, else by the node's name, as in engines/llama_cpp.py. The first forward is read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from core.model.stages import STAGES, Place, place_order, place_text, stage_named
from core.sources.engines.llama_cpp import BY_NODE, SCALED
from core.sources.imports.foreign_names import NODES
from core.sources.imports.stated_facts import Stated, bad_line, settle_fact, unknown_notes
from core.system.errors import FileError, UsageError
from core.trace.engines import HALF_CACHE
from core.trace.record import CaptureContract, Token, Trace, is_token_id
from core.trace.stats import ScopeStats, Stats

LONGEST = 4096  # characters of a line that can be a node's
PRINTED = ("f32", "f16", "bf16", "i8", "i16", "i32", "i64")  # types whose numbers the tool prints
GAP, SHOWN = "...", 3  # numbers at either end of a row
ENOUGH, DIGIT = 3, 1e-4  # nodes that show a part, from which on their sums say what is added; twice half a last digit
_NODE = re.compile(r"(\S+) = \((\w+)\)\s+(\w+)\((.*)\) = \{([0-9]+), ([0-9]+), ([0-9]+), ([0-9]+)\}\s*$")
_SOURCE = re.compile(r"(\S+?)(?: \([\w ]+\))?\{")
_SUM = re.compile(r"sum\s*=\s*([-+]?(?:[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|nan|inf))\s*$", re.IGNORECASE)
_PRINTED = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?(?:e[-+]?[0-9]+)?|nan|inf)|\.\.\.", re.IGNORECASE)
_HALF = re.compile(r"\bcache_[kv]_l?[0-9]{1,6} \(view\) = \(f16\)")  # the tool's own default
_TOKENS = re.compile(r"(?:number of input tokens = [0-9]+|prompt tokens?:)")
_ID = re.compile(r"^\D*?([0-9]{1,9})\s*$")
# begins with what is rare, for any text is searched for it
NODE_LINE = re.compile(r" = \(\w{1,8}\) {1,16}[A-Z_0-9]{1,24}\(")
BY_WEIGHT = {  # a weight's name after blk.N. -> its stage, or its part of a joined one
    f"{name}.{kind}": name if len(stage.weights) > 1 else stage.name
    for stage in STAGES if stage.operation in ("norm", "linear") and not stage.whole
    for name in stage.weights for kind in ("weight", "bias")
}
JOINED = {stage.name: stage.weights for stage in STAGES if len(stage.weights) > 1}
OPERATIONS = {"lookup": "GET_ROWS", "norm": "MUL", "linear": "MUL_MAT"}
WHOLE = {(f"{name}.weight", OPERATIONS[stage.operation]): stage.name
         for stage in STAGES if stage.whole for name in (*stage.weights, stage.tied) if name}
PARTS = {part: stage for stage, parts in JOINED.items() for part in parts}


@dataclass(slots=True)
class _Shown:
    """What is printed of a node: rows of numbers, and whether some are left out."""

    rows: list[list[float]] = field(default_factory=list)
    is_part: bool = False

    def take(self, content: str) -> bool:
        """Take a line that opens a bracket; say whether it holds nothing, or numbers to its end."""
        inner = content.strip().removeprefix("[").removesuffix(",").removesuffix("]").strip(" ,")
        words = [n.strip() for n in inner.split(",")] if inner else []
        if len(content) > LONGEST or not all(map(_PRINTED.fullmatch, words)):
            return False
        numbers = [float(n) for n in words if n != GAP]
        self.is_part |= len(numbers) < len(words)
        if numbers:
            self.rows.append(numbers)
        return True

    @property
    def numbers(self) -> list[float]:
        """All that is shown."""
        return [n for row in self.rows for n in row]


@dataclass(frozen=True, slots=True)
class _Node:
    """One node. place: its stage, or the weight that makes a part of it. shape: ne of ggml, the width first."""

    line: int
    place: tuple[int | None, str]
    op: str
    shape: tuple[int, int, int, int]
    sum: float
    shown: _Shown

    @property
    def count(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[2] if self.op == "ROPE" else self.shape[1] * self.shape[3]

    def samples(self, n_token: int, channel: int) -> tuple[tuple[int, int, float], ...]:
        """The finite values that are shown, where they stand; the node's rows are the last of n_token, its channels
        begin at channel.
        """
        (width, height, *more), first = self.shape, n_token - self.rows
        down, across = _ends(height), _ends(width)
        if self.op == "ROPE" or more != [1, 1] or [len(row) for row in self.shown.rows] != [len(across)] * len(down):
            return ()
        return tuple((first + i, channel + j, x) for i, row in zip(down, self.shown.rows, strict=True)
                     for j, x in zip(across, row, strict=True) if math.isfinite(x))


def read_llama_log(text: str, path: Path, stated: Stated) -> Trace:
    """Read the nodes of the first forward. FileError names the line; UsageError where --tokens do not fit."""
    if stated.definition == "population":
        raise UsageError("a log of llama.cpp has no std. Leave --definition out.")
    nodes, again = _first_forward(_nodes(text, path))
    if not nodes:
        raise FileError(f"{path.name} has no node of a known stage (attn_norm-0, ffn_out-0 ...). Log it again, whole.")
    _refuse_partial(path, nodes.values())
    tokens = settle_fact("tokens", _tokens(text), stated.tokens)
    rows = max(n.rows for n in nodes.values())
    if tokens is not None and rows != len(tokens):
        raise UsageError(f"{path.name} has {rows} tokens, {len(tokens)} were given. Give --tokens of this log.")
    cells = {place: _cell(path, nodes, place, rows) for place in sorted(_places(nodes), key=place_order)}
    model = stated.model
    facts = CaptureContract("llama.cpp", None, None, None, None, "sample", scopes=("all",), dtype="f32",
                            compute=None if model is None else model.compute,
                            kernel=HALF_CACHE if _HALF.search(text) else None)
    more = ("more than one forward was logged; the first is read",) if again else ()
    unknown = unknown_notes(tokens=tokens, architecture=None, depth=None, widths=None, vocabulary=None,
                            compute=facts.compute)
    return Trace(
        name=path.stem, facts=facts, tokens=tuple(Token(i) for i in tokens or ()), cells=cells,
        notes=("the log shows each stage's sum and a few of its values: those are judged, not all of them", *more,
               *unknown),
        origin={"kind": "llama-eval-callback log"})


def _nodes(text: str, path: Path) -> Iterator[_Node]:
    """Every node that is a stage, in order; one without its sum, or with a row that is none, is damaged."""
    line, found, shown = 0, None, _Shown()
    for number, content in enumerate(text.split("\n"), 1):
        head = _NODE.search(content) if len(content) <= LONGEST and " = (" in content else None
        if head is not None:
            if line:
                raise bad_line(path, number, f"the sum of the node of line {line}", content)
            if head[2] in PRINTED:  # of packed values, as in a cache of 8 bits, the tool prints the first line alone
                line, found, shown = number, head, _Shown()
            continue
        if not line or found is None:
            continue
        total = _SUM.search(content) if "sum" in content else None
        if total is not None:
            node = _node(line, found, float(total[1]), shown)
            line = 0
            if node is not None:
                yield node
        elif content.lstrip().startswith(("[", "...")) and not shown.take(content):
            raise bad_line(path, number, "a row of numbers", content)
    if line:
        raise FileError(f"{path.name} is cut short: the node of line {line} has no sum. Log it again, whole.")


def _ends(n: int) -> list[int]:
    """Which of n rows, or of n numbers of a row, are shown."""
    return list(range(n)) if n <= 2 * SHOWN else [*range(SHOWN), *range(n - SHOWN, n)]


def _refuse_partial(path: Path, nodes: Iterable[_Node]) -> None:
    """FileError where the sums are of the printed numbers alone, as in older versions of the tool: no mean follows."""
    parts = [n for n in nodes if n.shown.is_part and math.isfinite(n.sum)]
    if len(parts) >= ENOUGH and all(
            abs(n.sum - sum(n.shown.numbers)) <= DIGIT * len(n.shown.numbers) for n in parts):
        raise FileError(f"{path.name} adds up the numbers that it shows, not all (an old llama-eval-callback): nothing "
                        "follows of a stage. Log it again with a newer llama.cpp.")


def _node(line: int, head: re.Match[str], total: float, shown: _Shown) -> _Node | None:
    name, kind, op, sources = head[1], head[2], head[3], head[4]
    shape = (int(head[5]), int(head[6]), int(head[7]), int(head[8]))
    place = _place(name, op, sources)
    if place is None or kind != "f32" or not 0 < math.prod(shape) < 1 << 50:
        return None
    return _Node(line, place, op, shape, total, shown)


def _place(name: str, op: str, sources: str) -> tuple[int | None, str] | None:
    """What a node is: its stage, or the weight of a part; None where it is neither."""
    if name == SCALED:
        return None, "embedding"
    for source in _SOURCE.findall(sources)[:2]:
        source = source.lstrip(", ")
        if (source, op) in WHOLE:
            return None, WHOLE[source, op]
        head, _, rest = source.partition(".")
        layer, _, weight = rest.partition(".")
        if head == "blk" and weight in BY_WEIGHT and layer.isdigit() and len(layer) < 7:
            return int(layer), BY_WEIGHT[weight]
    node, _, layer = name.rpartition("-")
    stage = BY_NODE.get((node, op)) or BY_NODE.get((node, "")) or NODES.get(node)
    return (int(layer), stage) if stage and layer.isdigit() and len(layer) < 7 else None


def _first_forward(nodes: Iterator[_Node]) -> tuple[dict[tuple[int | None, str], _Node], bool]:
    """The nodes until the order begins anew. Of two for one place (product, then bias) the later counts."""
    found: dict[tuple[int | None, str], _Node] = {}
    highest = -1
    for node in nodes:
        layer = node.place[0]
        if (layer is not None and layer < highest) or (node.place in found and node.op == OPERATIONS["lookup"]):
            return found, True
        if (None, "logits") in found and node.place != (None, "logits"):
            return found, True
        highest = highest if layer is None else layer
        found[node.place] = node
    return found, False


def _places(nodes: dict[tuple[int | None, str], _Node]) -> set[Place]:
    whole = {(layer, PARTS.get(name, name)) for layer, name in nodes}
    return {(layer, stage) for layer, stage in whole
            if stage not in JOINED or all((layer, part) in nodes for part in JOINED[stage])}


def _cell(path: Path, nodes: dict[tuple[int | None, str], _Node], place: Place, n_token: int) -> ScopeStats:
    layer, stage = place
    found = [nodes[layer, part] for part in JOINED[stage]] if stage in JOINED else [nodes[place]]
    if len({n.rows for n in found}) > 1 or stage_named(stage).whole != (layer is None):
        raise FileError(f"{path.name}, line {found[0].line}: {place_text(place)} has parts of other lengths. "
                        "Log it again, whole.")
    count, total = sum(n.count for n in found), sum(n.sum for n in found)
    stats = Stats(count=count, mean=total / count, nan=0, inf=0)
    if not math.isfinite(total):
        stats = Stats(count=count, nan=1) if math.isnan(total) else Stats(count=count, inf=1)
    starts = accumulate((n.shape[0] for n in found), initial=0)
    samples = tuple(s for n, start in zip(found, starts, strict=False) for s in n.samples(n_token, start))
    return ScopeStats({"all" if found[0].rows == n_token else "last": stats}, samples)


def _tokens(text: str) -> tuple[int, ...] | None:
    """The ids that llama-eval-callback lists before the first node, a line each; None where it does not."""
    said = _TOKENS.search(text)
    if said is None:
        return None
    ids: list[int] = []
    for content in text[said.end():said.end() + (1 << 20)].split("\n")[1:]:
        found = _ID.match(content[:LONGEST])
        if found is None or not is_token_id(int(found[1])):
            break
        ids.append(int(found[1]))
    return tuple(ids) or None
