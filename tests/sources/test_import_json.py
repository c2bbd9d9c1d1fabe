"""Imports of `apr trace --payload --json`: scope by its counts, absent stages, damaged documents."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from core.sources.imports.open_trace import import_trace
from core.system.errors import FileError, UsageError


@pytest.fixture
def written(tmp_path):
    def write(content: str | bytes, name: str = "trace.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    return write


def stat(count: int = 8, **changes: object) -> dict:
    usual = {"min": -1.5, "max": 1.0, "mean": 0.1, "std_dev": 0.5, "nan_count": 0, "inf_count": 0, "zero_count": 0}
    return usual | {"count": count} | changes


def document(n_token: int = 1, **changes: object) -> dict:
    widths = {"attn_norm": 8, "qkv": 16, "attn_out": 8, "ffn_norm": 8, "ffn_out": 8, "output": 8}
    layers = [{"layer_idx": i} | {s: stat(n * n_token, std_dev=i + 0.25) for s, n in widths.items()} for i in range(2)]
    return {
        "format": "GGUF", "architecture": "qwen2", "num_layers": 2, "hidden_dim": 8, "vocab_size": 100, "num_heads": 2,
        "num_kv_heads": 1, "prompt": "What is 2+2?", "encoded_tokens": [5, 6, 7], "embedding": stat(8 * n_token),
        "layers": layers, "final_norm": stat(8 * n_token), "logits_stats": stat(100),
        "logits": {"vocab_size": 100, "l2_norm": 5.0, "top_k": [{"token_id": 22, "logit": 1.5}]},
    } | changes


def test_the_json_of_one_token_is_scope_last_and_lacks_the_sub_ffn_stages(written):
    trace = import_trace(written(json.dumps(document())))
    assert trace.facts.scopes == ("last",) and trace.facts.arch == "qwen2" and trace.facts.definition == "sample"
    cell = trace.cells[1, "qkv"].at("last")
    assert (cell.std, cell.count, cell.absmax, cell.l2) == (1.25, 16, 1.5, None)
    assert (1, "ffn_swigl") not in trace.cells and len(trace.tokens) == 3 and trace.top[0].id == 22
    assert any(note.startswith("scope last: a stage of width 8 has 8 values") for note in trace.notes)


def test_the_json_of_all_tokens_is_scope_all_by_its_counts(written):
    trace = import_trace(written("GPU: none\nbanner\n" + json.dumps(document(n_token=3), indent=2)))
    assert trace.facts.scopes == ("all",) and trace.cells[None, "logits"].at("last").count == 100


def test_a_scope_that_the_counts_contradict_is_the_users_mistake(written):
    with pytest.raises(UsageError, match="does not fit: a stage of width 8 has 8 values"):
        import_trace(written(json.dumps(document())), scope="all")


def test_zero_counts_are_absent_and_nothing_finite_is_none(written):
    doc = document()
    doc["layers"][0]["ffn_gate"] = stat(0, min=0.0, max=0.0, mean=0.0, std_dev=0.0)
    doc["layers"][0]["qkv"] = stat(0, min=0.0, max=0.0, mean=0.0, std_dev=0.0)
    doc["layers"][1]["output"] = stat(8, min=None, max=None, mean=0.0, std_dev=0.0, nan_count=8)
    trace = import_trace(written(json.dumps(doc)))
    assert (0, "ffn_gate") not in trace.cells and (0, "qkv") not in trace.cells
    cell = trace.cells[1, "output"].at("last")
    assert (cell.nan, cell.mean, cell.std, cell.min) == (8, None, None, None)


@pytest.mark.parametrize("change, says", [
    ({"layers": 3}, "the keys layers and encoded_tokens"),
    ({"encoded_tokens": ["a"]}, "a list of token ids"),
    ({"layers": []}, "2 layers, as num_layers says|at least one measured stage"),
    ({"layers": [{"layer_idx": 1}]}, r"layers\[0\]: the statistics of layer 0"),
    ({"layers": [{"layer_idx": 0, "attn_norm": stat(std_dev=-1.0)}]}, "std_dev: 0 or above"),
    ({"layers": [{"layer_idx": 0, "attn_norm": stat(mean=None)}]}, "attn_norm.mean: a finite number"),
    ({"layers": [{"layer_idx": 0, "attn_norm": stat(mean=10**400)}]}, "attn_norm.mean: a finite number"),
    ({"encoded_tokens": [1 << 31]}, "a list of token ids"),
    ({"layers": [{"layer_idx": 0, "attn_norm": stat(count=-3)}]}, "attn_norm.count: a whole number"),
    ({"layers": [{"layer_idx": 0, "attn_norm": stat(nan_count=9)}]}, "a count that holds the NaN"),
    ({"layers": [{"layer_idx": 0, "attn_norm": 7}]}, "an object of statistics"),
    ({"num_layers": 3}, "3 layers, as num_layers says"),
    ({"embedding": stat(16)}, "embedding: the count of the other stages"),
    ({"logits": {"top_k": [{"token_id": 1}]}}, "logit: a finite number"),
    ({"hidden_dim": "big"}, "hidden_dim: a whole number"),
])
def test_a_damaged_json_names_the_key(written, change, says):
    with pytest.raises(FileError, match=says):
        import_trace(written(json.dumps(document(**change))))


def test_a_cut_or_impossible_json_names_its_line(written):
    text = "banner\n" + json.dumps(document(), indent=1)
    with pytest.raises(FileError, match=r"line \d+: JSON was expected"):
        import_trace(written(text[:400]))
    with pytest.raises(FileError, match="NaN is not"):
        import_trace(written(text.replace("0.25", "NaN")))
    with pytest.raises(FileError, match=r"not a JSON document|JSON was expected"):
        import_trace(written("[" * 100_000 + "\n{" + '"a":[' * 100_000))
