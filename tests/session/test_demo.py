"""The demonstration holds its promises, judged by a forward of its own: numpy, float64, a loop over heads."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import gguf
import numpy as np
import pytest

from core.demo import files
from core.demo.weights import N_LAYER, PEAK, SINK, SPIKE_LAYER, demo_model
from core.faults.byte_faults import BYTE_FAULTS, PLANTED_KEY, TENSORS, plant_byte_fault
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.model.convert import convert
from core.model.stages import GRID_STAGES
from core.quant.types import QUANTS, row_bytes
from core.system.errors import OutputError, UsageError
from core.text.tokenizer import open_tokenizer

PROMPT = "What is 2+2?"
PLACES = [(kind, stage) for kind, fault in BYTE_FAULTS.items() for stage in fault.stages]
VISIBLE = 1e-3  # relative L2 of a planted stage; a thousand times what rounding to float32 does to it


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    return files.write_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture
def built_once(monkeypatch) -> None:
    """The model that is written is the one built before: for tests of the writing."""
    monkeypatch.setattr(files, "demo_model", built)


@pytest.fixture(scope="module")
def stages(pair) -> dict:
    """Every stage's values, from the written file's bytes, read by gguf-py."""
    model = open_model(pair[0])
    tensors = gguf.GGUFReader(pair[0]).tensors
    values = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in tensors}
    return reference_forward(values, open_tokenizer(model).encode(PROMPT))


built = cache(demo_model)


@cache
def clean() -> ModelFile:
    model = built()
    return replace(model, keys={**model.keys, "apr.rope_type": 2})


def first_layers(model: ModelFile) -> dict:
    """Stage values of layers 0 to 2."""
    values = {}
    for name, weight in model.weights.items():
        if name.startswith("blk.") and int(name.split(".")[1]) > 2:
            continue
        rows = weight.data.reshape(-1, row_bytes(QUANTS[weight.quant], weight.shape[-1]))
        kind = gguf.GGMLQuantizationType[weight.quant]
        values[name] = gguf.quants.dequantize(rows, kind).reshape(weight.shape)
    return reference_forward(values, open_tokenizer(clean()).encode(PROMPT))


@pytest.fixture(scope="module")
def clean_stages() -> dict:
    return first_layers(clean())


def ratios(stages: dict, rows: slice) -> dict[tuple[int, str], float]:
    """Std over the same stage's one layer before, in order of computation."""
    std = {(i, s): float(stages[i, s][rows].std(ddof=1)) for i in range(N_LAYER) for s in GRID_STAGES}
    return {(i, s): std[i, s] / std[i - 1, s] for i in range(1, N_LAYER) for s in GRID_STAGES}


def test_the_first_spike_over_all_tokens_is_layer_3_ffn_swigl_with_its_precursor_and_what_follows(stages):
    found = ratios(stages, slice(None))
    assert next(place for place, ratio in found.items() if ratio > 10) == (3, "ffn_swigl")
    assert 15 < found[3, "ffn_swigl"] < 19
    assert 3 < found[3, "ffn_silu"] < 10
    assert found[3, "ffn_out"] > 10 and found[3, "output"] > 10
    assert found[3, "ffn_gate"] < 3


def test_no_other_layer_grows_twofold(stages):
    others = {place: ratio for place, ratio in ratios(stages, slice(None)).items() if place[0] != 3}
    assert max(others.values()) < 2, max(others, key=others.get)


@pytest.mark.parametrize("rows", [slice(1, None), slice(-1, None)], ids=["rest", "last"])
def test_without_the_first_token_nothing_grows_by_a_third(stages, rows):
    found = ratios(stages, rows)
    assert max(found.values()) < 1.3, max(found, key=found.get)


def test_the_first_token_carries_it_alone_in_one_channel(stages):
    size = np.abs(stages[SPIKE_LAYER, "ffn_swigl"])
    assert np.unravel_index(size.argmax(), size.shape) == (0, PEAK)
    assert np.abs(stages[SPIKE_LAYER, "ffn_out"]).argmax() == SINK
    # at its own position the gate's silu stays a precursor, so that no scope names another first spike
    assert ratios(stages, slice(0, 1))[3, "ffn_silu"] < 10


def test_the_next_token_is_the_answer_that_its_text_gives(stages, pair):
    logits = stages["logits"]
    assert np.isfinite(logits).all()
    assert open_tokenizer(open_model(pair[0])).token_text(int(logits.argmax())) == " Four"


def test_the_tokenizer_adds_bos_and_has_merges_of_its_own(pair):
    tokenizer = open_tokenizer(open_model(pair[1]))
    ids = tokenizer.encode(PROMPT)
    texts = [tokenizer.token_text(i) for i in ids]
    assert texts == ["<|bos|>", "What", " is", " ", "2", "+", "2", "?"]
    assert tokenizer.decode(tokenizer.encode("né 漢字")[1:]) == "né 漢字"
    assert tokenizer.apply_chat_template("hi").endswith("hi<|im_end|>\n<|im_start|>assistant\n")


def test_its_types_are_a_real_mix():
    quants = {weight.quant for weight in clean().weights.values() if len(weight.shape) == 2}
    vectors = {weight.quant for weight in clean().weights.values() if len(weight.shape) == 1}
    assert (quants, vectors) == ({"Q4_K", "Q6_K"}, {"F32"})


def test_the_apr_is_the_converted_gguf_and_a_second_writing_gives_the_same_bytes(pair, tmp_path):
    convert(pair[0], tmp_path / "converted.apr")
    assert (tmp_path / "converted.apr").read_bytes() == pair[1].read_bytes()
    again = files.write_demo(tmp_path)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in pair]


def test_making_it_needs_no_torch():
    code = ("import sys, core.demo.weights as d; d.demo_model();"
            "sys.exit('torch' in sys.modules or 'polars' in sys.modules)")
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "stage"), PLACES)
def test_a_fault_first_shows_at_its_place_and_touches_that_tensor_alone(kind, stage, clean_stages):
    planted = plant_byte_fault(clean(), f"{kind}@2.{stage}")
    changed = {n for n, w in planted.weights.items() if not np.array_equal(w.data, clean().weights[n].data)}
    parts = {"no-bias": ["attn_q.bias", "attn_k.bias", "attn_v.bias"], "swap-heads": ["attn_q.weight", "attn_q.bias"]}
    assert changed == {f"blk.2.{name}" for name in parts.get(kind, [f"{TENSORS[stage]}.weight"])}
    with np.errstate(invalid="ignore"):
        after = first_layers(planted)
    order = [(layer, s) for layer in range(3) for s in GRID_STAGES]
    differ = [p for p in order if not np.array_equal(after[p], clean_stages[p])]
    assert differ[0] == (2, stage)
    change = after[2, stage] - clean_stages[2, stage]
    if kind in ("scale64", "nan"):  # row 0 makes channel 0
        assert set(np.flatnonzero(np.any(change != 0, axis=0))) == {0}
    if kind == "nan":
        assert np.isnan(after[2, stage][:, 0]).all()
    else:
        assert np.linalg.norm(change) > VISIBLE * np.linalg.norm(clean_stages[2, stage])


def test_transpose_leaves_the_transposed_matrix():
    name = "blk.6.attn_output.weight"
    before, after = (
        gguf.quants.dequantize(m.weights[name].data.reshape(256, 144), gguf.GGMLQuantizationType.Q4_K)
        for m in (clean(), plant_byte_fault(clean(), "transpose@6.attn_out"))
    )
    assert np.linalg.norm(after - before.T) < 0.1 * np.linalg.norm(before)  # the error of a second Q4_K rounding
    assert np.linalg.norm(after - before) > np.linalg.norm(before)


def test_a_planted_apr_says_so_and_its_gguf_stays_clean(tmp_path, pair, built_once):
    gguf_path, apr_path = files.write_demo(tmp_path, "scale64@5.ffn_out")
    assert gguf_path.read_bytes() == pair[0].read_bytes()
    planted = open_model(apr_path)
    assert planted.key(PLANTED_KEY) == "scale64@5.ffn_out"
    assert PLANTED_KEY not in open_model(pair[1]).keys
    good = open_model(pair[1]).weights
    changed = [n for n, w in planted.weights.items() if not np.array_equal(w.data, good[n].data)]
    assert changed == ["blk.5.ffn_down.weight"]


def test_rope_pairing_is_in_the_metadata_alone(tmp_path, pair, built_once):
    planted, good = open_model(files.write_demo(tmp_path, "rope-pairing")[1]), open_model(pair[1])
    assert (read_arch(good).rope.pairing, read_arch(planted).rope.pairing) == ("halves", "adjacent")
    assert all(np.array_equal(w.data, good.weights[n].data) for n, w in planted.weights.items())


@pytest.mark.parametrize("fault", [
    "", "frob@3.ffn_out", "scale64", "scale64@3", "scale64@3.output", "transpose@3.ffn_out", "no-bias@2.attn_out",
    "rope-pairing@3", "rope-pairing@3.qkv", "scale64@28.ffn_out", "scale64@-1.ffn_out", "scale64@².ffn_out",
    "scale64@.qkv",
])
def test_any_other_fault_is_refused_before_a_file_is_written(fault, tmp_path, built_once):
    with pytest.raises(UsageError, match=r"there is no such fault|is not a layer"):
        files.write_demo(tmp_path / "out", fault)
    assert not (tmp_path / "out").exists()


def test_the_refusal_shows_the_table():
    with pytest.raises(UsageError) as refused:
        plant_byte_fault(clean(), "frob@3.ffn_out")
    assert all(kind in str(refused.value) for kind in BYTE_FAULTS)


# --- the kept pair ---------------------------------------------------------------------------------------------------


def test_the_pair_is_built_once_and_again_where_it_is_broken(tmp_path, monkeypatch, pair, built_once):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = files.ensure_demo()
    assert first[0].parent == files.demo_folder() and first[0].is_relative_to(tmp_path)
    born = [path.stat().st_mtime_ns for path in first]
    assert files.ensure_demo() == first and [path.stat().st_mtime_ns for path in first] == born
    first[1].write_bytes(first[1].read_bytes()[:5000])
    assert files.ensure_demo() == first
    assert first[1].read_bytes() == pair[1].read_bytes()
    assert [p.name for p in first[0].parent.parent.iterdir()] == [files.demo_folder().name]  # nothing left beside it


def test_building_the_pair_again_keeps_what_else_lies_in_its_folder(tmp_path, monkeypatch, built_once):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    files.demo_folder().mkdir(parents=True)
    (files.demo_folder() / "notes.txt").write_text("mine")
    files.ensure_demo()
    assert (files.demo_folder() / "notes.txt").read_text() == "mine"


def test_a_cache_that_cannot_be_written_gives_a_temporary_pair(tmp_path, monkeypatch, pair, built_once):
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "spare").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "spare"))
    made = files.ensure_demo()
    assert made[0].is_relative_to(tmp_path / "spare") and made[0].read_bytes() == pair[0].read_bytes()


def test_files_that_exist_are_kept_unless_forced(tmp_path, pair, built_once):
    (tmp_path / "demo.apr").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        files.write_demo(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["demo.apr"] and (tmp_path / "demo.apr").read_text() == "mine"
    assert files.write_demo(tmp_path, force=True)[1].read_bytes() == pair[1].read_bytes()


def test_a_folder_that_cannot_be_made_is_an_output_error(tmp_path, built_once):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="could not be made"):
        files.write_demo(tmp_path / "file" / "out")


# --- the judge -------------------------------------------------------------------------------------------------------


def reference_forward(values: dict[str, np.ndarray], ids: list[int], n_head: int = 4, base: float = 1e6) -> dict:
    """Stage values [T, width] in float64, by (layer, stage), of a qwen2 model; its logits under "logits"."""
    n_layer = 1 + max(int(name.split(".")[1]) for name in values if name.startswith("blk."))
    values = {name: value.astype(np.float64) for name, value in values.items()}
    x, out = values["token_embd.weight"][ids], {}
    for layer in range(n_layer):
        w = {n.removeprefix(f"blk.{layer}."): v for n, v in values.items() if n.startswith(f"blk.{layer}.")}
        def put(stage: str, value: np.ndarray, layer: int = layer) -> np.ndarray:
            out[layer, stage] = value
            return value

        h = put("attn_norm", _norm(x, w["attn_norm.weight"]))
        q, k, v = (h @ w[f"attn_{m}.weight"].T + w[f"attn_{m}.bias"] for m in "qkv")
        put("qkv", np.concatenate((q, k, v), 1))
        width = q.shape[1] // n_head
        group = q.shape[1] // k.shape[1]
        heads = []
        for head in range(n_head):
            mine, shared = (slice(i * width, (i + 1) * width) for i in (head, head // group))
            score = _rope(q[:, mine], base) @ _rope(k[:, shared], base).T / np.sqrt(width)
            score = np.where(np.tri(len(ids), dtype=bool), score, -np.inf)
            share = np.exp(score - score.max(1, keepdims=True))
            heads.append(share / share.sum(1, keepdims=True) @ v[:, shared])
        put("attn_mix", np.concatenate(heads, 1))
        x = x + put("attn_out", out[layer, "attn_mix"] @ w["attn_output.weight"].T)
        h = put("ffn_norm", _norm(x, w["ffn_norm.weight"]))
        gate, up = put("ffn_gate", h @ w["ffn_gate.weight"].T), put("ffn_up", h @ w["ffn_up.weight"].T)
        product = put("ffn_swigl", put("ffn_silu", gate / (1 + np.exp(-gate))) * up)
        x = put("output", x + put("ffn_out", product @ w["ffn_down.weight"].T))
    out["logits"] = _norm(x, values["output_norm.weight"])[-1] @ values["output.weight"].T
    return out


def _norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(1, keepdims=True) + 1e-6) * weight


def _rope(x: np.ndarray, base: float) -> np.ndarray:
    half = x.shape[1] // 2
    turn = np.outer(np.arange(len(x)), base ** (-np.arange(half) / half))
    a, b = x[:, :half], x[:, half:]
    return np.concatenate((a * np.cos(turn) - b * np.sin(turn), b * np.cos(turn) + a * np.sin(turn)), 1)
