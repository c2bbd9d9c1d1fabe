"""Imports of APRT stage files, and the measuring of arrays that sources without torch share."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from core.sources.imports.open_trace import import_trace
from core.system.errors import FileError, UsageError
from core.trace.measure import measure_array
from core.trace.stats import ROW, ScopeStats, TokenStats
from tests.support.traces import UNROUNDED

D, H, K, F, V, T = 8, 8, 4, 12, 50, 3
WIDTHS = {
    "embedding": D, "attn_norm": D, "qkv_matmul": H + 2 * K, "qkv_bias": H + 2 * K, "q_post_rope": H, "k_post_rope": K,
    "attn_scores": T, "attention": H, "attn_out": D, "post_attn_residual": D, "ffn_norm": D, "ffn_gate": F, "ffn_up": F,
    "ffn_silu": F, "ffn_swigl": F, "ffn_out": D, "post_ffn_residual": D, "final_norm": D,
}


def aprt(layer: int, values: np.ndarray) -> bytes:
    return b"APRT" + struct.pack("<II", layer, values.size) + values.astype("<f4").tobytes()


@pytest.fixture
def dump(tmp_path):
    """A dump of layer 0 over T tokens, and the values in it."""
    rng, values = np.random.default_rng(7), {}
    (tmp_path / "layer-0").mkdir()
    for stage, width in WIDTHS.items():
        values[stage] = rng.normal(size=(T, width)).astype(np.float32)
        folder, layer = (tmp_path, 0xFFFFFFFF) if stage == "final_norm" else (tmp_path / "layer-0", 0)
        (folder / f"{stage}.bin").write_bytes(aprt(layer, values[stage]))
    values["lm_head"] = rng.normal(size=(1, V)).astype(np.float32)
    (tmp_path / "lm_head.bin").write_bytes(aprt(0xFFFFFFFF, values["lm_head"]))
    return tmp_path, values


def test_a_dump_gives_per_token_statistics_and_its_values(dump):
    folder, values = dump
    trace = import_trace(folder, tokens=[5, 6, 7])
    cell = trace.cells[0, "ffn_gate"]
    assert isinstance(cell, TokenStats) and (cell.width, cell.n_token, trace.facts.scopes) == (F, T, ())
    assert cell.at("pos:1").std == pytest.approx(np.std(values["ffn_gate"][1].astype(float), ddof=1), rel=1e-12)
    assert cell.at("all").std == pytest.approx(np.std(values["ffn_gate"].astype(float), ddof=1), rel=1e-12)
    assert np.array_equal(trace.values[0, "ffn_gate"], values["ffn_gate"])
    assert np.array_equal(trace.values[0, "qkv"], values["qkv_bias"])  # with its bias, where both are there
    logits = trace.cells[None, "logits"]
    assert (logits.first, logits.width, logits.n_token) == (T - 1, V, 1)
    assert (trace.facts.d_model, trace.facts.n_vocab, trace.facts.n_layer) == (D, V, None)
    assert {p[1] for p in trace.cells} >= {"q_rope", "k_rope", "attn_mix", "attn_resid", "embedding", "final_norm"}
    assert any("left out: attn_scores" in note for note in trace.notes)
    swigl = trace.cells[0, "ffn_swigl"]
    peak = swigl.factors
    assert peak.left == values["ffn_silu"][peak.token, peak.channel]
    assert peak.right == values["ffn_up"][peak.token, peak.channel]


def test_a_dump_without_a_bias_file_says_that_qkv_is_before_its_bias(dump):
    folder, values = dump
    (folder / "layer-0" / "qkv_bias.bin").unlink()
    trace = import_trace(folder, tokens=[5, 6, 7])
    assert np.array_equal(trace.values[0, "qkv"], values["qkv_matmul"])
    assert any("qkv is before its bias" in note and "[0]" in note for note in trace.notes)


def test_a_dump_without_tokens_has_statistics_of_an_unknown_scope_and_no_shape(dump):
    folder, values = dump
    trace = import_trace(folder)
    cell = trace.cells[0, "ffn_out"]
    assert isinstance(cell, ScopeStats) and trace.values is None and trace.facts.scopes == ("unknown",)
    assert cell.at("unknown").std == pytest.approx(np.std(values["ffn_out"].astype(float), ddof=1), rel=1e-12)
    assert cell.at("unknown").peak_token is None and trace.facts.d_model is None
    assert any(note.startswith("tokens is unknown") for note in trace.notes)


def test_a_dump_of_the_last_token_stands_at_the_last_position(dump):
    folder, values = dump
    for stage in WIDTHS:
        path = folder / "final_norm.bin" if stage == "final_norm" else folder / "layer-0" / f"{stage}.bin"
        path.write_bytes(aprt(0xFFFFFFFF if stage == "final_norm" else 0, values[stage][-1:]))
    trace = import_trace(folder, tokens=[5, 6, 7], scope="last")
    assert (trace.cells[0, "qkv"].first, trace.cells[0, "qkv"].width, trace.facts.scopes) == (2, H + 2 * K, ("last",))
    assert trace.cells[0, "qkv"].at("first") is None


def test_tokens_that_do_not_divide_a_dump_are_the_users_mistake(dump):
    with pytest.raises(UsageError, match="embedding has 24 values, which 7 tokens do not divide"):
        import_trace(dump[0], tokens=range(7))


def test_a_definition_cannot_be_said_of_values(dump):
    with pytest.raises(UsageError, match="Leave --definition out"):
        import_trace(dump[0], definition="population")


@pytest.mark.parametrize("content, says", [
    (b"", "begins with"), (b"APRX" + bytes(12), "begins with b'APRX'"),
    (aprt(0, np.ones(24))[:-1], "values need 108 bytes and it has 107"),
    (aprt(0, np.ones(0)), "0 values"), (aprt(4, np.ones(24)), "its header says layer 4, its folder layer 0"),
    (aprt(0, np.ones(48)), "its width is 16, where the stages before it have 8"),
])
def test_a_damaged_stage_file_is_named(dump, content, says):
    (dump[0] / "layer-0" / "ffn_norm.bin").write_bytes(content)
    with pytest.raises(FileError, match=f"layer-0/ffn_norm.bin .*{says}"):
        import_trace(dump[0], tokens=[5, 6, 7])


def test_q_and_k_that_do_not_make_qkv_are_refused(dump):
    for stage in ("qkv_bias", "qkv_matmul"):
        (dump[0] / "layer-0" / f"{stage}.bin").write_bytes(aprt(0, np.ones((T, 20))))
    with pytest.raises(FileError, match="qkv has width 20"):
        import_trace(dump[0], tokens=[5, 6, 7])


# -- measuring arrays

def test_an_array_is_measured_as_the_tap_measures_a_tensor():
    torch = pytest.importorskip("torch")
    from core.trace.taps import measure

    rng = np.random.default_rng(3)
    x = rng.normal(size=(4, 300)).astype(np.float32)
    x[1, 7], x[2, 9], x[2, 11], x[3, 5], x[0, 0] = 5000.0, np.nan, np.inf, -np.inf, 0.0
    left, right = rng.normal(size=(2, 4, 300)).astype(np.float32)
    ours = measure_array(x, 2, (left, right))
    factors = {"ffn_silu": torch.tensor(left), "ffn_up": torch.tensor(right)}
    theirs = measure(torch.tensor(x), 2, factors)
    for name in ROW.names:
        assert np.allclose(ours.rows[name], theirs.rows[name], rtol=0 if name in UNROUNDED else 1e-12, atol=0), name
    assert ours.top == theirs.top and ours.massive == theirs.massive and ours.massive is not None
    assert (ours.factors.token, ours.factors.channel, ours.factors.left) == (3, 7, float(left[1, 7]))
    assert ours.factors.correlation == pytest.approx(theirs.factors.correlation)


def test_an_array_without_a_finite_value_has_no_peak_and_no_statistics():
    cell = measure_array(np.full((2, 3), np.nan))
    assert cell.rows["peak_channel"].tolist() == [-1, -1] and cell.rows["nan_channel"].tolist() == [0, 0]
    assert cell.top == ()
    assert cell.at("all").mean is None and cell.at("all").nan == 6
