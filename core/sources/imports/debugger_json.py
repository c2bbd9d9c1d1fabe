"""Read what transformers' model_addition_debugger_context wrote: a tree of module calls in JSON, arrays beside it.

With use_repr=False each tensor is a .safetensors file beside the JSON: its values are read. Else the tree has mean, std
(sample), min and max of each, printed with five digits. What goes into a module is read as well as what comes out.
Source: transformers/model_debugging_utils.py of 5.x (_serialize_tensor_like_io, log_model_debug_trace).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.sources.imports.array_bytes import Array, floats, read_arrays
from core.sources.imports.array_folder import COMPUTES, token_ids
from core.sources.imports.dump import Dump, trace_of_dump
from core.sources.imports.foreign_names import JOINED, Hidden, Part, input_of, is_norm_after, output_of
from core.sources.imports.stated_facts import Stated, scope_cells, settle_fact, unknown_notes
from core.system.arrays import Floats32
from core.system.errors import FileError, UsageError
from core.system.json_text import from_json
from core.trace.record import CaptureContract, Token, Trace, is_token_id
from core.trace.stats import Stats

PRINTED_DIGITS = 5  # of tensor(1.2345e-02)
AGAIN = "Write it again with model_addition_debugger_context(model, path, do_prune_layers=False, use_repr=False)."
_NUMBER = re.compile(r"tensor\(\s*([-+0-9.einaf]{1,40})[,)]")
_SHAPE = re.compile(r"torch\.Size\(\[((?:[0-9]{1,18}(?:, )?){0,6})\]\)$")
_IDS = re.compile(r"tensor\(\[\[([0-9, \s]+)\]\]")

Node = Mapping[str, Any]


@dataclass(slots=True)
class _Found:
    folder: Path
    arrays: dict[Part | Hidden, Floats32] = field(default_factory=dict)
    stats: dict[Part, Stats] = field(default_factory=dict)
    rows: dict[Part, int] = field(default_factory=dict)
    tokens: tuple[int, ...] | None = None
    dtypes: set[str] = field(default_factory=set)
    last: int = -1  # the highest layer


def read_debugger_json(text: str, path: Path, stated: Stated) -> Trace:
    """Read the tree; FileError names the module, UsageError what the user says and it does not fit."""
    root = from_json(text, path.name, AGAIN)
    if not isinstance(root, dict) or not isinstance(root.get("module_path"), str):
        raise FileError(f"{path.name} has no key module_path: it is no tree of module calls. {AGAIN}")
    found = _Found(path.parent)
    for node in _walk(root):
        _read_node(found, node)
    dtype = next(iter(found.dtypes)) if len(found.dtypes) == 1 else None
    engine, kind = "transformers", "transformers' model_addition_debugger"
    gone = sorted(set(range(found.last + 1)) - {p[0] for p in (*found.arrays, *found.stats) if isinstance(p, tuple)})
    notes = (f"layers {gone[0]} to {gone[-1]} were pruned; do_prune_layers=False keeps them",) if gone else ()
    if found.arrays:
        return trace_of_dump(Dump(kind, engine, found.arrays, found.tokens, COMPUTES.get(dtype or ""), dtype,
                                  notes=notes), path, stated)
    return _of_statistics(found, kind, engine, dtype, notes, path, stated)


def _walk(root: Node) -> Iterator[Node]:
    left = [root]
    while left:
        node = left.pop()
        yield node
        children = node.get("children", [])
        if not isinstance(children, list) or not all(isinstance(c, dict) for c in children):
            raise FileError(f"{ascii(node.get('module_path'))[:60]} has children that are no list of calls. {AGAIN}")
        left += reversed(children)


def _read_node(found: _Found, node: Node) -> None:
    path = node.get("module_path")
    if not isinstance(path, str):
        raise FileError(f"a call without a module_path stands in the tree. {AGAIN}")
    inside = _tensors(node.get("inputs"))
    if found.tokens is None:
        found.tokens = next((ids for t in inside if (ids := _ids(found, t)) is not None), None)
    out, into = output_of(path), input_of(path)
    if out is not None and out[0] is not None:
        found.last = max(found.last, out[0])
    if out is not None:
        _take(found, out, next(iter(_tensors(node.get("outputs"))), None), path)
    if is_norm_after(path):
        into = (found.last, "output")
    if into is not None:
        _take(found, into, next((t for t in inside if "float" in str(t.get("dtype"))), None), path)


def _tensors(value: object, depth: int = 0) -> list[Node]:
    """The tensors of a call, in order."""
    if isinstance(value, dict):
        if "shape" in value and "dtype" in value:
            return [value]
        value = list(value.values())
    if isinstance(value, list) and depth < 8:
        return [t for each in value for t in _tensors(each, depth + 1)]
    return []


def _take(found: _Found, part: Part, tensor: Node | None, path: str) -> None:
    if tensor is None:
        return
    found.dtypes.add(str(tensor["dtype"]).removeprefix("torch."))
    named = tensor.get("value")
    if isinstance(named, str) and named.endswith(".safetensors"):
        found.arrays[part] = floats(path, _array(found.folder, named))
    elif part[1] not in JOINED:
        found.stats[part], found.rows[part] = _stats(tensor, path)


def _array(folder: Path, named: str) -> Array:
    """The array of a file beside the JSON; a name that leads elsewhere is refused."""
    name = named.removeprefix("./")
    if "/" in name or "\\" in name or name.startswith(".") or "\0" in name:
        raise FileError(f"{ascii(named)[:80]} is not a file beside the JSON. {AGAIN}")
    found = {key: x for key, x, _ in read_arrays(folder / name)}
    if "data" not in found:
        raise FileError(f"{ascii(name)[:80]} has no array named data. {AGAIN}")
    return found["data"]


def _ids(found: _Found, tensor: Node) -> tuple[int, ...] | None:
    if "int" not in str(tensor.get("dtype")):
        return None
    value = tensor.get("value")
    if isinstance(value, str) and value.endswith(".safetensors"):
        return token_ids("input_ids", _array(found.folder, value))
    text = "\n".join(map(str, value)) if isinstance(value, list) else str(value)
    said = _IDS.search(text)
    ids = tuple(int(n) for n in said[1].replace("\n", " ").split(",") if n.strip().isdigit()) if said else ()
    return ids if ids and all(map(is_token_id, ids)) else None


def _stats(tensor: Node, path: str) -> tuple[Stats, int]:
    shape = _SHAPE.match(str(tensor.get("shape")))
    sizes = [int(n) for n in shape[1].split(",") if n.strip()] if shape else []
    numbers = {}
    for name in ("mean", "std", "min", "max"):
        said = _NUMBER.match(str(tensor.get(name)))
        try:
            numbers[name] = float(said[1]) if said else None
        except ValueError:
            numbers[name] = None
        if numbers[name] is None:
            raise FileError(f"{ascii(path)[:80]}: {name} tensor(...) was expected, {ascii(tensor.get(name))[:40]} was "
                            f"found. {AGAIN}")
    mean, std, low, high = (numbers[n] for n in ("mean", "std", "min", "max"))
    assert mean is not None and std is not None and low is not None and high is not None
    count = math.prod(sizes)
    if len(sizes) < 2 or not 0 < count < 1 << 50 or std < 0 or low > high:
        raise FileError(f"{ascii(path)[:80]}: a shape [1, tokens, width], min <= max and a std from 0 were "
                        f"needed. {AGAIN}")
    if not all(map(math.isfinite, (mean, std, low, high))):
        return Stats(count=count, nan=1 if math.isnan(mean) else None, inf=None if math.isnan(mean) else 1), sizes[-2]
    return Stats(count=count, mean=mean, std=std, min=low, max=high, absmax=max(-low, high)), sizes[-2]


def _of_statistics(
    found: _Found, kind: str, engine: str, dtype: str | None, notes: tuple[str, ...], path: Path, stated: Stated,
) -> Trace:
    if not found.stats:
        raise FileError(f"{path.name} has no module of a known stage (model.layers.0.mlp.down_proj ...). {AGAIN}")
    if stated.definition == "population":
        raise UsageError("transformers prints the sample std. Leave --definition out.")
    tokens = settle_fact("tokens", found.tokens, stated.tokens)
    if tokens is not None and max(found.rows.values()) != len(tokens):
        raise UsageError(f"{path.name} has {max(found.rows.values())} rows, {len(tokens)} tokens were given.")
    scope = stated.scope or "all"
    compute = COMPUTES.get(dtype or "")
    facts = CaptureContract(engine, None, None, None, None, "sample", scopes=(scope,), compute=compute, dtype=dtype)
    return Trace(
        name=path.stem, facts=facts, tokens=tuple(Token(i) for i in tokens or ()),
        cells=scope_cells({p: s for p, s in found.stats.items() if p[1] != "logits" or found.rows[p] == 1}, scope),
        notes=(*notes, *unknown_notes(tokens=tokens, architecture=None, depth=None, widths=None, vocabulary=None,
                                      compute=compute)),
        origin={"kind": kind, "printed_digits": PRINTED_DIGITS})
