"""Read the JSON of `apr trace FILE.gguf --payload --json`. The four sub-FFN stages are not in it: absent, not zero.

Its rules: sample std over finite values; statistics of the last token only, except where the counts show all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.model.stages import GRID_STAGES, SUB_FFN, UNKNOWN_SCOPE, Place, place_text, scope_positions, stage_named
from core.sources.imports.stated_facts import Stated, scope_cells, settle_fact, unknown_notes, without_unmeasured
from core.system.errors import FileError, UsageError
from core.system.json_text import number
from core.trace.record import CaptureContract, NextToken, Token, Trace, is_token_id
from core.trace.stats import Stats

DEFINITION = "sample"
REQUIRED = tuple(stage for stage in GRID_STAGES if stage not in SUB_FFN)
WHOLE = {"embedding": "embedding", "final_norm": "final_norm", "logits_stats": "logits"}  # key -> stage


class _Document:
    """A parsed document whose every look-up names the file and the key when it fails."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        before = next(i for i, line in enumerate(text.split("\n")) if line.lstrip().startswith("{"))
        body = text.split("\n", before)[before]
        try:
            self.root, _ = json.JSONDecoder(parse_constant=self._refuse).raw_decode(body.lstrip())
        except json.JSONDecodeError as error:
            line = before + error.lineno
            raise FileError(
                f"{path.name}, line {line}: JSON was expected ({error.msg}). It is cut short or damaged."
            ) from None
        except (RecursionError, ValueError) as error:
            raise FileError(f"{path.name} is not a JSON document: {error}. Export the trace again.") from None

    @staticmethod
    def _refuse(literal: str) -> object:
        raise ValueError(f"{literal} is not JSON")

    def error(self, key: str, expected: str, found: object) -> FileError:
        shown = "nothing" if found is None else ascii(found)[:80]
        return FileError(f"{self.path.name}: {key}: {expected} was expected, {shown} was found. Export it again.")

    def finite(self, record: Mapping[str, Any], key: str, name: str) -> float:
        value = record.get(name)
        try:
            found = number(value)
        except ValueError:
            found = None
        if found is None or not math.isfinite(found):
            raise self.error(f"{key}.{name}", "a finite number", value)
        return found

    def count(self, record: Mapping[str, Any], key: str, name: str, *, optional: bool = False) -> int | None:
        value = record.get(name)
        if value is None and optional:
            return None
        if type(value) is not int or not 0 <= value < 1 << 53:
            raise self.error(f"{key}.{name}".strip("."), "a whole number from 0", value)
        return value


def read_apr_json(text: str, path: Path, stated: Stated) -> Trace:
    """Read the first JSON document of the text (banner lines may stand before it). FileError names the key."""
    document = _Document(path, text)
    root = document.root
    if not isinstance(root, dict) or not isinstance(root.get("layers"), list) or "encoded_tokens" not in root:
        raise document.error("the document", "the keys layers and encoded_tokens of apr trace --payload --json", root)
    tokens = settle_fact("tokens", _tokens(document, root), stated.tokens)
    assert tokens is not None
    stats = _stats(document, root)
    d_model = document.count(root, "", "hidden_dim", optional=True)
    scope, scope_note = _scope(document, stats, d_model, len(tokens), stated)
    n_layer = document.count(root, "", "num_layers", optional=True)
    if n_layer not in (None, len(root["layers"])):
        raise document.error("layers", f"{n_layer} layers, as num_layers says", f"{len(root['layers'])} layers")
    n_vocab = document.count(root, "", "vocab_size", optional=True)
    arch = root.get("architecture")
    arch = arch if isinstance(arch, str) else None
    measured, notes = without_unmeasured(stats)
    definition = stated.definition or DEFINITION
    facts = CaptureContract("aprender", arch, len(root["layers"]), d_model, n_vocab, definition,
                            scopes=(scope or UNKNOWN_SCOPE,))
    unknown = unknown_notes(scope=scope, tokens=tokens, architecture=arch, width=d_model, compute=None, device=None)
    origin = {
        "kind": "apr trace --payload --json", "prompt": root.get("prompt"), "n_head": root.get("num_heads"),
        "n_kv_head": root.get("num_kv_heads"),
    }
    return Trace(
        name=path.stem, facts=facts, tokens=tuple(Token(id) for id in tokens), cells=scope_cells(measured, scope),
        top=_top(document, root), notes=(*scope_note, *notes, *unknown),
        origin={key: value for key, value in origin.items() if isinstance(value, (str, int))},
    )


def _tokens(document: _Document, root: Mapping[str, Any]) -> tuple[int, ...]:
    ids = root["encoded_tokens"]
    if not isinstance(ids, list) or not ids or not all(map(is_token_id, ids)):
        raise document.error("encoded_tokens", "a list of token ids", ids)
    return tuple(ids)


def _stats(document: _Document, root: Mapping[str, Any]) -> dict[Place, Stats]:
    stats: dict[Place, Stats] = {}
    for i, layer in enumerate(root["layers"]):
        if not isinstance(layer, dict) or layer.get("layer_idx", i) != i:
            raise document.error(f"layers[{i}]", f"the statistics of layer {i}", layer)
        for stage in GRID_STAGES:
            found = layer.get(stage)
            if found is None and stage not in REQUIRED:
                continue
            cell = _cell(document, f"layers[{i}].{stage}", found)
            if cell is not None:
                stats[i, stage] = cell
    for key, stage in WHOLE.items():
        cell = _cell(document, key, root[key]) if root.get(key) is not None else None
        if cell is not None:
            stats[None, stage] = cell
    if not stats:
        raise document.error("layers", "at least one measured stage", root["layers"])
    return stats


def _cell(document: _Document, key: str, found: object) -> Stats | None:
    """Read one statistics object; None where nothing was measured (count 0)."""
    if not isinstance(found, dict):
        raise document.error(key, "an object of statistics", found)
    names = ("count", "nan_count", "inf_count", "zero_count")
    count, nan, inf, zero = (document.count(found, key, name) for name in names)
    assert count is not None and nan is not None and inf is not None
    finite = count - nan - inf
    if finite < 0:
        raise document.error(key, "a count that holds the NaN and Inf", count)
    if count == 0:
        return None
    if finite == 0:  # min and max are then null, mean and std_dev zeros that nobody measured
        return Stats(count=count, nan=nan, inf=inf, zero=zero)
    low, high, mean, std = (document.finite(found, key, name) for name in ("min", "max", "mean", "std_dev"))
    if std < 0:
        raise document.error(f"{key}.std_dev", "0 or above", std)
    return Stats(
        count=count, nan=nan, inf=inf, zero=zero, min=low, max=high, absmax=max(abs(low), abs(high)), mean=mean,
        std=std if finite > 1 else None,
    )


def _scope(
    document: _Document, stats: Mapping[Place, Stats], d_model: int | None, n_token: int, stated: Stated,
) -> tuple[str | None, tuple[str, ...]]:
    """Tell the scope by the counts: a stage of width D that holds D values covers one token, T x D all of them."""
    counts = {p: s.count for p, s in stats.items() if p[1] != "logits" and stage_named(p[1]).width == "D"}
    if len(set(counts.values())) > 1:
        odd = next(p for p, n in counts.items() if n != next(iter(counts.values())))
        raise document.error(place_text(odd), "the count of the other stages of its width", counts[odd])
    covered = next(iter(counts.values()), None)
    if not d_model or not covered:
        return stated.scope or "last", () if stated.scope else ("scope last: apr trace --json covers the last token",)
    if stated.scope is not None:
        if covered != d_model * len(scope_positions(stated.scope, n_token)):
            raise UsageError(
                f"--scope {stated.scope} of {n_token} tokens does not fit: a stage of width {d_model} has {covered} "
                "values. Leave --scope out."
            )
        return stated.scope, ()
    has = f"a stage of width {d_model} has {covered} values"
    if covered == d_model:
        return "last", (f"scope last: {has}, one token's, and apr trace --json takes the last",)
    if covered == d_model * n_token:
        return "all", (f"scope all: {has}, those of all {n_token} tokens",)
    return None, ()


def _top(document: _Document, root: Mapping[str, Any]) -> tuple[NextToken, ...]:
    logits = root.get("logits")
    rows = logits.get("top_k") if isinstance(logits, dict) else None
    if rows is None:
        return ()
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise document.error("logits.top_k", "a list of {token_id, logit}", rows)
    top = []
    for i, row in enumerate(rows):
        key = f"logits.top_k[{i}]"
        id, logit = document.count(row, key, "token_id"), document.finite(row, key, "logit")
        assert id is not None
        top.append(NextToken(id, None, logit))
    return tuple(top)
