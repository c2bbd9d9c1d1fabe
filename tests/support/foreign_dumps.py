"""Write a run's values as other tools would: a log of llama-eval-callback, named arrays, module names, statistics."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from core.model.stages import STAGES, Place, place_text, stage_named
from core.sources.imports.foreign_names import INPUTS, OUTPUTS, WHOLE
from tests.support.foreign_runs import ends, numbers

WEIGHTED = {s.name for s in STAGES if s.operation in ("norm", "linear")}
NODES = {"attn_resid": "ffn_inp", "attn_mix": "kqv_out", "output": "l_out", "q_rope": "Qcur", "k_rope": "Kcur",
         "ffn_swigl": "ffn_swiglu"}


def write_log(path: Path, values: Mapping[Place, Any], kv: int) -> Path:
    """As llama-eval-callback prints: each node's sum and the first and last three numbers of a row. kv: width of k."""
    lines = ["llama_context: n_ctx = 512"]
    for place, x in values.items():
        for name, source, op, part in _nodes(place, np.asarray(x, np.float32), kv):
            rows, width = part.shape
            shape = f"{{{width}, {rows}, 1, 1}}" if op != "ROPE" else f"{{8, {width // 8}, {rows}, 1}}"
            sources = f"{source}{{{width}, 1, 1, 1}}, x{{1, 1, 1, 1}}}}"
            lines.append(f"common_debug_cb_eval: {name:>24} = (f32) {op:>10}({sources}) = {shape}")
            lines += ["    [", "     ["]
            lines += [row if isinstance(row, str) else f"      [{numbers(row)}  ],"
                      for row in ends(list(part), "      ..., ")]
            lines += ["     ],", "    ]", f"    sum = {part.sum(dtype=np.float64):f}"]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _nodes(place: Place, x: Any, kv: int) -> list[tuple[str, str, str, Any]]:
    layer, stage = place
    if stage == "qkv":
        edges = [0, x.shape[1] - 2 * kv, x.shape[1] - kv, x.shape[1]]
        return [(f"{n}cur-{layer}", f"blk.{layer}.attn_{n.lower()}.weight", "MUL_MAT", x[:, a:b])
                for n, a, b in zip("QKV", edges, edges[1:], strict=False)]
    row = stage_named(stage)
    op = {"norm": "MUL", "lookup": "GET_ROWS", "rope": "ROPE", "residual": "ADD"}.get(row.operation, "MUL_MAT")
    if layer is None:
        return [(f"result_{stage}", f"{row.weights[0]}.weight", op, x)]
    source = f"blk.{layer}.{row.weights[0]}.weight" if stage in WEIGHTED else "node_7"
    return [(f"{NODES.get(stage, stage)}-{layer}", source, op if stage in WEIGHTED or op == "ROPE" else "ADD", x)]


def write_npz(path: Path, values: Mapping[Place, Any], tokens: tuple[int, ...]) -> Path:
    """As a hook recipe saves: L.stage arrays and the tokens."""
    np.savez(path, tokens=np.asarray(tokens), **{place_text(p): np.asarray(v, np.float32) for p, v in values.items()})
    return path


def write_safetensors(path: Path, values: Mapping[Place, Any], tokens: tuple[int, ...]) -> Path:
    """The same as .safetensors."""
    from safetensors.numpy import save_file

    save_file({"tokens": np.asarray(tokens), **{place_text(p): np.asarray(v, np.float32) for p, v in values.items()}},
              path)
    return path


def write_rows(path: Path, values: Mapping[Place, Any], tokens: tuple[int, ...]) -> Path:
    """Statistics as JSONL, the facts first."""
    lines: list[dict[str, Any]] = [{"tokens": list(tokens), "scope": "all", "definition": "sample", "engine": "mine"}]
    for (layer, stage), x in values.items():
        x = np.asarray(x, np.float64)
        lines.append({"layer": layer, "stage": stage, "mean": float(x.mean()), "std": float(x.std(ddof=1))})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n", encoding="ascii")
    return path


def write_tree(folder: Path, values: Mapping[Place, Any], tokens: tuple[int, ...]) -> Path:
    """As model_addition_debugger_context(use_repr=True) prints it: what modules put out, and what goes into some."""
    modules: dict[str, dict[str, Any]] = {}
    for (layer, stage), x in values.items():
        base = "M.model" + ("" if layer is None else f".layers.{layer}")
        names = WHOLE if layer is None else OUTPUTS
        for path in (p for p, s in names.items() if s == stage and p):
            modules.setdefault(f"{base}.{path}", {})["outputs"] = _tensor(x)
        for path in (p for p, s in INPUTS.items() if s == stage):
            modules.setdefault(f"{base}.{path}", {})["inputs"] = {"args": [_tensor(x)]}
    ids = {"shape": f"torch.Size([1, {len(tokens)}])", "dtype": "torch.int64",
           "value": [f"tensor([[{', '.join(map(str, tokens))}]])"]}
    tree = {"module_path": "M", "inputs": {"args": [], "kwargs": {"input_ids": ids}},
            "children": [{"module_path": path, **said} for path, said in modules.items()]}
    path = folder / "M_debug_tree_FULL_TENSORS.json"
    path.write_text(json.dumps(tree, indent=2), encoding="ascii")
    return path


def _tensor(x: Any) -> dict[str, Any]:
    x = np.asarray(x, np.float64)
    numbers = {"mean": x.mean(), "std": x.std(ddof=1), "min": x.min(), "max": x.max()}
    return {"shape": f"torch.Size([1, {len(x)}, {x.shape[1]}])", "dtype": "torch.float32", "value": ["tensor(...)"],
            **{k: f"tensor({v:.4e})" for k, v in numbers.items()}}


def write_imatrix(path: Path, values: Mapping[Place, Any]) -> Path:
    """As llama-imatrix writes: the sums of squares of what goes into each product."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "", use_temp_file=False)
    writer.add_string("general.type", "imatrix")
    for (layer, stage), x in values.items():
        for weight in (w for s in STAGES if not s.special and s.inputs[:1] == (stage,) and s.operation == "linear"
                       and not s.whole for w in s.weights):
            sums = np.square(np.asarray(x, np.float32)).sum(0)
            writer.add_tensor(f"blk.{layer}.{weight}.weight.in_sum2", sums.reshape(1, -1))
            writer.add_tensor(f"blk.{layer}.{weight}.weight.counts", np.asarray([[float(len(x))]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
