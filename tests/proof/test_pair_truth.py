"""What a verdict on a pair may say: a fault that a coarse compute hides is found, and no pass hides what differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr_tui.cli.output import comparison_text
from apr_tui.render.verdict_card import pair_card
from core import session
from core.proof.verdict import OTHER_WEIGHTS, Comparison, Doubt
from core.quant.types import QUANTS
from tests.support.small_models import IDS, write_model
from tests.trained.surgery import raise_least, read_copy

WIDE = {"d_model": 256, "d_ff": 256, "n_layer": 2, "arch": "llama"}
COARSE = ["q8", "bf16"]


def source(path: Path, **settings) -> session.Source:
    return session.Source(path, device="cpu", **settings)


def compared(a: session.Source, b: session.Source, ids=IDS, **more) -> Comparison:
    return session.compare(a, b, None if ids is None else session.Prompt(tokens=tuple(ids)), **more)


def told(result: Comparison) -> str:
    return f"{result.verdict} ({result.meaning}) at {result.first}: {' | '.join(result.reasons)}"


@pytest.fixture(scope="module")
def good(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("good") / "good.gguf", "Q8_0", **WIDE)


def bad(folder: Path, quant: str = "Q8_0", **more) -> Path:
    return write_model(folder / "bad.gguf", quant, **WIDE, **more)


def row_zeroed(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[5] = 0
    return x


def sign_of_a_block(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[7, 32:64] *= -1
    return x


# --- sides that compute alike: the local error decides ---


@pytest.mark.parametrize("compute", COARSE)
@pytest.mark.parametrize(("more", "place"), [
    ({"keys": {"llama.rope.freq_base": 9900.0}}, (0, "q_rope")),
    ({"keys": {"llama.attention.layer_norm_rms_epsilon": 1e-4}}, (0, "attn_norm")),
    ({"changes": {"blk.1.attn_k.weight": row_zeroed}}, (1, "qkv")),
    ({"changes": {"blk.1.ffn_down.weight": sign_of_a_block}}, (1, "ffn_out")),
], ids=["RoPE base", "eps", "zeroed row", "block sign"])
def test_a_fault_below_a_coarse_computes_noise_is_h2_at_its_place(compute, more, place, good, tmp_path):
    result = compared(source(good, compute=compute), source(bad(tmp_path, **more), compute=compute))
    assert (result.verdict, result.first) == ("H2", place), told(result)


@pytest.mark.parametrize("compute", COARSE)
def test_a_value_that_was_scaled_by_a_hair_is_found_under_a_coarse_compute(compute, good, tmp_path):
    faint = {"output_norm.weight": lambda x: x * np.float32(1.0001)}
    clean, other = (write_model(tmp_path / f"{i}.gguf", "Q8_0", **WIDE, changes=c) for i, c in enumerate(({}, faint)))
    result = compared(source(clean, compute=compute), source(other, compute=compute))
    assert result.first == (None, "final_norm"), told(result)


def test_equal_values_in_another_type_are_a_choice_where_the_compute_rounds_by_the_type(good, tmp_path):
    apr = tmp_path / "same.apr"
    session.convert(good, apr, to="f32", force=False)
    result = compared(source(good, compute="q8"), source(apr, compute="q8"))
    assert result.verdict == "H3" and "equal values" in result.reasons[0], told(result)
    assert compared(source(good), source(apr)).verdict == "AGREE", "in float32 nothing differs"


# --- nothing differs in values, yet the files do ---


def test_a_key_that_one_token_does_not_show_is_named_and_no_pass(good, tmp_path):
    result = compared(source(good), source(bad(tmp_path, keys={"llama.rope.freq_base": 100000.0})), IDS[:1])
    assert (result.verdict, result.why, result.first) == ("INCONCLUSIVE", Doubt.UNREACHED, None), told(result)
    assert "no cell differs on this prompt, yet rope.freq_base is 10000 in A and 100000 in B" in result.reasons[0]


def test_embedding_rows_that_no_token_reads_are_named_and_no_pass(good, tmp_path):
    unread = max(IDS) + 1

    def zeroed(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[unread:] = 0
        return x

    result = compared(source(good), source(bad(tmp_path, changes={"token_embd.weight": zeroed})))
    assert (result.verdict, result.why) == ("INCONCLUSIVE", Doubt.UNREACHED), told(result)
    assert "token_embd.weight" in result.reasons[0]


def test_a_key_that_two_bundles_say_otherwise_is_no_pass(good, tmp_path):
    bundles = []
    for i, path in enumerate((good, bad(tmp_path, keys={"llama.rope.freq_base": 100000.0}))):
        traced = session.trace(source(path), session.Prompt(tokens=tuple(IDS[:1])))
        bundles.append(source(session.export(traced, tmp_path / f"b{i}", command="test")))
    result = compared(*bundles, None)
    assert result.verdict == "INCONCLUSIVE" and "rope.freq_base" in result.reasons[0], told(result)


# --- the first place is where the named cause is read ---


@pytest.mark.parametrize("compute", COARSE)
def test_good_in_float32_against_bad_in_a_coarse_compute_names_the_weights_stage(compute, good, tmp_path):
    other = bad(tmp_path, changes={"blk.1.ffn_up.weight": lambda x: x * np.float32(1.5)})
    result = compared(source(good), source(other, compute=compute))
    assert (result.verdict, result.first) == ("H2", (1, "ffn_up")), told(result)
    assert result.cells[0, "qkv"].rel_l2 > 1e-5, "where the coarse compute begins, before it"


def test_a_tied_heads_rows_that_no_token_reads_are_named_at_the_logits(tmp_path):
    kept = {"output.weight": lambda x: None}
    clean = write_model(tmp_path / "a.gguf", "Q8_0", **WIDE, changes=kept)
    other = write_model(tmp_path / "b.gguf", "Q8_0", **WIDE, changes=kept | {
        "token_embd.weight": lambda x: np.concatenate([x[:-1], x[-1:] * 0])})
    result = compared(source(clean), source(other))
    assert (result.verdict, result.first) == ("H2", (None, "logits")), told(result)


# --- a saved run of this forward is held by the same rule ---


@pytest.mark.parametrize("compute", COARSE)
@pytest.mark.parametrize("saved_is_a", [True, False])
def test_a_saved_run_of_another_prompts_weights_differs_by_its_local_error(compute, saved_is_a, good, tmp_path):
    ids = session.Prompt(tokens=tuple(IDS))
    traced = session.trace(source(good, compute=compute), ids, session.RunOptions(keep_values=True))
    values = dict(traced.values)
    values[1, "ffn_silu"] = values[1, "ffn_silu"] * 1.0001
    sources = []
    for i, trace in enumerate((traced, replace(traced, values=values))):
        out = session.export(trace, tmp_path / f"b{i}", command="test")
        pair = (source(out), source(good, compute=compute))
        sources.append(pair if saved_is_a else pair[::-1])
    clean, faulty = (compared(*pair, None) for pair in sources)
    assert clean.verdict in ("AGREE", "H1"), told(clean)
    assert (faulty.verdict, faulty.first) == ("H2", (1, "ffn_silu")), told(faulty)


# --- words ---


def test_another_training_is_said_to_be_one(good, tmp_path):
    other = write_model(tmp_path / "o.gguf", "Q8_0", **WIDE, seed=5)
    result = compared(source(good), source(other))
    assert (result.verdict, result.meaning) == ("H2", OTHER_WEIGHTS), told(result)


def test_a_constant_below_a_types_rounding_is_no_rounding(tmp_path):
    name, good = "blk.1.attn_q.weight", write_model(tmp_path / "a.gguf", "Q4_1", **WIDE)
    model = read_copy(good)
    raise_least(model, name, 0.03 * float(model.values(name).std()))
    result = compared(source(good), source(model.write(tmp_path / "b.gguf")))
    assert (result.verdict, result.first) == ("H2", (1, "qkv")), told(result)


def test_a_tensor_of_one_side_is_only_there_and_never_infinitely_far(tmp_path):
    a = write_model(tmp_path / "a.gguf")
    b = write_model(tmp_path / "b.gguf", changes={"blk.1.attn_k.bias": lambda x: None})
    result = compared(source(a), source(b))
    assert "blk.1.attn_k.bias: only in A" in told(result) and "inf" not in told(result)


def test_a_file_against_itself_is_called_by_what_differs(good):
    assert compared(source(good), source(good, compute="bf16")).names == ("f32", "bf16")
    assert compared(source(good), source(good, threads=3)).names[1] == "threads 3"


def test_a_type_that_nobody_has_measured_is_said_to_be_the_cause(tmp_path, monkeypatch):
    monkeypatch.setitem(QUANTS, "TQ2_0", replace(QUANTS["TQ2_0"], error=None))
    a = write_model(tmp_path / "a.gguf", "F16", **WIDE)
    b = write_model(tmp_path / "b.gguf", "F16", **WIDE, quants={"blk.0.ffn_up.weight": "TQ2_0"})
    result = compared(source(a), source(b))
    assert (result.verdict, result.meaning) == ("INCONCLUSIVE", Doubt.UNKNOWN_TYPE), told(result)
    assert "noise floor" not in told(result) and result.first == (0, "ffn_up")


def test_a_side_with_nan_is_named_in_place_of_an_infinite_distance(tmp_path):
    def nan(x: np.ndarray) -> np.ndarray:
        x = x.copy()
        x[5] = np.nan
        return x

    a = write_model(tmp_path / "good.gguf", **WIDE)
    result = compared(source(a), source(bad(tmp_path, "F32", changes={"blk.1.ffn_up.weight": nan})))
    assert (result.verdict, result.first, result.broken) == ("H2", (1, "ffn_up"), "NaN or Inf in B only"), told(result)
    assert "measured: NaN or Inf in B only" in comparison_text(result) and " inf" not in comparison_text(result)
    card = " ".join(text for row in pair_card(result, 80) for text, _ in row)
    assert "NaN or Inf in B only" in card and " inf" not in card
