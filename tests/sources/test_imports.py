"""Imports of text and tables: what they say, what they do not, and files that are damaged."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from core.model.stages import GRID_STAGES
from core.sources.imports.open_trace import import_trace
from core.system.errors import FileError, UsageError
from core.trace.hints import find_hints

SHARED = Path(__file__).parents[3] / "shared" / "data"
needs_shared = pytest.mark.skipif(not SHARED.exists(), reason="no ../shared/data")
PUBLISHED = SHARED / "apr-trace-payload-7b.txt"

BANNER = """Model: /m/tiny.{format}

Format: {FORMAT} (native)

Architecture:
  Layers: 2
  Hidden dim: 8
  Vocab size: 100
  Heads: 2

Test prompt: "What is 2+2?"
Encoded tokens: [5, 6, 7]

FORWARD PASS (with layer tracing):

EMBEDDING:
  Range: [-0.4160, 0.5273]
  Mean: 0.0000, Std:   0.0174

"""
TAIL = """
FINAL LAYER NORM:
  Range: [-3.500000, 2.250000]
  Mean: 0.006147, Std: 2.608262

LM_HEAD output:
  Vocab size: 100
  L2 norm: 46.0424
  Range: [-11.262582, 16.736774]
  Mean: -2.070376

Top 5 predictions:
  1. token_id=22, logit=16.7368
  2. token_id=57, logit=15.6684
  3. token_id=20, logit=14.1198
  4. token_id=71, logit=14.0954
  5. token_id=21, logit=14.0902

TRACE SUMMARY:
  Logit range: 28.00 (reasonable)
"""


def layer_text(layer: int, status: str = "OK", stages: tuple[str, ...] = GRID_STAGES, **stds: str) -> str:
    usual = {stage: f"{layer + i / 10 + 0.1:8.4f}" for i, stage in enumerate(stages)}
    rows = [f"    {stage:9}: mean={-0.0021:8.4f} std={stds.get(stage, usual[stage])}" for stage in stages]
    return "\n".join((f"  Layer {layer:2}/2 [{status}]", *rows, "", ""))


def trace_text(layers: str | None = None, fmt: str = "apr", banner: str = BANNER, tail: str = TAIL) -> str:
    body = layer_text(0) + layer_text(1) if layers is None else layers
    return banner.format(format=fmt, FORMAT=fmt.upper()) + "LAYER-BY-LAYER ACTIVATIONS:\n  Legend: x\n\n" + body + tail


@pytest.fixture
def written(tmp_path):
    def write(content: str | bytes, name: str = "trace.txt") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path
    return write


# -- the text

@needs_shared
def test_the_published_trace_has_every_stage_of_every_layer_with_its_printed_std():
    trace = import_trace(PUBLISHED)
    assert all((layer, stage) in trace.cells for layer in range(28) for stage in GRID_STAGES) and trace.n_layer == 28
    assert trace.cells[3, "ffn_swigl"].at("all").std == 1.2216
    assert trace.cells[2, "ffn_swigl"].at("all").std == 0.0709
    assert trace.cells[27, "attn_out"].at("all").mean == 0.0584
    assert [token.id for token in trace.tokens] == [3838, 374, 220, 17, 10, 17, 30]
    facts = trace.facts
    assert (facts.n_layer, facts.d_model, facts.n_vocab) == (28, 3584, 152064)
    assert (facts.definition, facts.scopes) == ("sample", ("all",))
    assert facts.arch is None and trace.origin["printed_decimals"] == 4
    assert [(n.id, n.logit) for n in trace.top][:2] == [(220, 16.7368), (576, 15.6684)]
    logits, norm = trace.cells[None, "logits"], trace.cells[None, "final_norm"]
    assert logits.at("all") is None and logits.at("last").l2 == 1146.0424 and logits.at("last").std is None
    assert (norm.at("all").min, norm.at("all").absmax, norm.at("all").std) == (-143.556381, 143.556381, 2.608262)


@needs_shared
def test_the_published_spike_is_found_in_the_imported_trace_and_in_its_table():
    first = find_hints(import_trace(PUBLISHED))[0]
    assert (first.layer, first.stage, round(first.measured, 1)) == (3, "ffn_swigl", 17.2)
    table = find_hints(import_trace(SHARED / "apr-sub-ffn-stds-7b.csv", scope="all"))[0]
    assert (table.layer, table.stage, table.measured) == (3, "ffn_swigl", first.measured)


def test_a_text_says_tokens_widths_scope_and_definition(written):
    trace = import_trace(written(trace_text()))
    assert trace.name == "tiny" and [token.id for token in trace.tokens] == [5, 6, 7]
    assert (trace.facts.n_layer, trace.facts.d_model, trace.facts.n_vocab) == (2, 8, 100)
    assert trace.facts.definition == "sample" and trace.facts.scopes == ("all",)
    assert trace.cells[1, "qkv"].at("all").std == 1.2 and trace.cells[1, "qkv"].at("all").mean == -0.0021
    assert trace.cells[1, "qkv"].at("all").count is None  # not printed, so not known


def test_the_text_of_a_gguf_covers_the_last_token_only(written):
    trace = import_trace(written(trace_text(fmt="gguf")))
    assert trace.facts.scopes == ("last",) and trace.cells[0, "qkv"].at("all") is None


def test_colours_and_a_missing_banner_do_not_matter_but_what_is_missing_is_unknown(written):
    plain = trace_text(banner="")
    coloured = plain.replace("std=", "std=\x1b[1;32m").replace("\n", "\x1b[0m\n")
    trace = import_trace(written(coloured))
    assert trace.cells == import_trace(written(plain)).cells and trace.cells[0, "output"].at("unknown").std == 1.0
    assert trace.facts.scopes == ("unknown",) and trace.tokens == () and trace.facts.d_model is None
    assert any(note.startswith("scope is unknown; say it with --scope") for note in trace.notes)
    assert any(note.startswith("tokens is unknown; say it with --tokens") for note in trace.notes)
    assert any("not said by the file: architecture, width" in note for note in trace.notes)


def test_the_user_says_what_the_file_does_not(written):
    path = written(trace_text(banner=""))
    trace = import_trace(path, scope="all", tokens=[5, 6, 7], definition="population")
    assert trace.facts.scopes == ("all",) and trace.facts.definition == "population"
    assert [token.id for token in trace.tokens] == [5, 6, 7]
    assert not any("unknown" in note for note in trace.notes)


def test_tokens_that_contradict_the_file_are_the_users_mistake(written):
    with pytest.raises(UsageError, match=r"file says tokens 5,6,7, --tokens says 1,2.*Leave --tokens out"):
        import_trace(written(trace_text()), tokens=[1, 2])


@pytest.mark.parametrize("options, says", [
    ({"scope": "some"}, "'some' is not a scope"), ({"definition": "biased"}, "sample, population"),
    ({"tokens": []}, "token ids"), ({"tokens": [-1]}, "token ids"), ({"tokens": [1 << 31]}, "token ids"),
    ({"scope": "pos:3", "tokens": [1, 2]}, "covers none"),
])
def test_a_bad_option_is_refused_before_the_file_is_read(options, says):
    with pytest.raises(UsageError, match=says):
        import_trace(Path("nowhere.txt"), **options)


def test_sub_ffn_slots_that_were_not_printed_are_absent(written):
    fewer = tuple(stage for stage in GRID_STAGES if stage not in ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl"))
    trace = import_trace(written(trace_text(layer_text(0, stages=fewer) + layer_text(1, stages=fewer))))
    assert (0, "ffn_gate") not in trace.cells and trace.cells[0, "ffn_out"].at("all").std == 0.5


def test_sub_ffn_slots_at_zero_beside_a_living_output_are_absent_and_said(written):
    zeros = {stage: "  0.0000" for stage in ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")}
    text = trace_text(layer_text(0) + layer_text(1, **zeros)).replace("-0.0021 std=  0.0000", " 0.0000 std=  0.0000")
    trace = import_trace(written(text))
    assert (1, "ffn_swigl") not in trace.cells and (0, "ffn_swigl") in trace.cells
    assert any("not measured: layers [1]" in note for note in trace.notes)


def test_a_trace_that_stopped_at_an_anomaly_is_whole_up_to_there(written):
    broken = (
        "  Layer  1/2 [ANOMALY]\n    attn_norm: mean=  0.1000 std=  0.2000\n    qkv      : mean=     NaN std=     NaN\n"
    )
    trace = import_trace(written(trace_text(layer_text(0) + broken, tail="")))
    assert trace.n_layer == 2 and trace.facts.n_layer == 2
    assert (1, "attn_norm") in trace.cells and (1, "qkv") not in trace.cells
    assert "the tool met NaN or Inf in layer 1 and stopped there" in trace.notes


WHOLE = trace_text()
QKV_1 = "    qkv      : mean= -0.0021 std=  1.2000\n"
QKV_AT = WHOLE[: WHOLE.index(QKV_1)].count("\n") + 1  # its line


@pytest.mark.parametrize("text, says", [
    ("", "is empty"),
    ("  \n\n", "is empty"),
    (b"\x00\x01\x02", "is not text: byte 0 is zero"),
    (b"Layer 0/2 \xff", "byte 10 is not UTF-8"),
    (b"APRT\x00\x00", "one APRT stage file. Give the folder"),
    ("hello\nworld\n", "is no trace that this build imports: .* the JSON .* the text .* a table .* APRT"),
    (WHOLE[: WHOLE.index("  Layer  1")], f"ends at line {QKV_AT - 4} without layer 1 of 2"),
    (WHOLE[: WHOLE.index(QKV_1)], f"line {QKV_AT - 1}: qkv of layer 1 was expected"),
    (WHOLE[: WHOLE.index("FINAL")], "without the section FINAL LAYER NORM"),
    (WHOLE[: WHOLE.index("LM_HEAD")], "without the section LM_HEAD"),
    (WHOLE[: WHOLE.index("Top 5")], "without the section Top"),
    (WHOLE[: WHOLE.index("  5. token")], "without five predictions"),
    (WHOLE.replace("1. token_id=", "1. token_id=" + "9" * 5000), "token_id=..., logit=...` was expected"),
    (WHOLE[: WHOLE.index("4.0902")], "without five predictions|`1. token_id"),
    (WHOLE[: WHOLE.index("902\n")], "without five predictions"),
    (WHOLE[: WHOLE.index("46.0424")], "without a range under logits"),
    (WHOLE.replace("Layers: 2", "Layers: 28"), "says 28 layers, then 2"),
    (WHOLE.replace("Layer  1/2", "Layer  1/3"), "layer 1 was expected, 'Layer  1/3"),
    (WHOLE.replace("Layer  1/2", "Layer  0/2"), f"line {QKV_AT - 2}: layer 1 was expected, 'Layer  0/2"),
    (trace_text(layer_text(1) + layer_text(0)), f"line {QKV_AT - 14}: layer 0 was expected"),
    (WHOLE.replace(QKV_1, ""), f"line {QKV_AT + 7}: qkv of layer 1 was expected"),
    (WHOLE.replace(QKV_1, QKV_1 * 2), f"line {QKV_AT + 1}: a new stage of layer 1 .* was expected, 'qkv"),
    (WHOLE.replace(QKV_1, QKV_1.replace("qkv", "abc")), f"line {QKV_AT}: a new stage of layer 1"),
    (WHOLE.replace(QKV_1, QKV_1.replace("  1.2000", "     NaN")), f"line {QKV_AT}: a finite number"),
    (WHOLE.replace(QKV_1, QKV_1.replace("  1.2000", "     inf")), f"line {QKV_AT}: a finite number"),
    (WHOLE.replace(QKV_1, QKV_1.replace("  1.2000", " -1.2000")), f"line {QKV_AT}: a std of 0 or above"),
    (WHOLE.replace(QKV_1, QKV_1.replace("1.2000", "1.2x")), f"line {QKV_AT}: a line `stage: mean"),
    (WHOLE.replace("[5, 6, 7]", "[5, x]"), "token ids as"),
    (WHOLE + WHOLE, "each heading once"),
])
def test_a_damaged_text_names_the_line_and_what_was_expected(written, text, says):
    with pytest.raises(FileError, match=says):
        import_trace(written(text))


@pytest.mark.parametrize("place", range(0, len(WHOLE) - len("TRACE SUMMARY:\n  Logit range: 28.00 (reasonable)\n"), 17))
def test_a_text_cut_anywhere_before_its_summary_is_refused(written, place):
    with pytest.raises(FileError):
        import_trace(written(WHOLE[:place]))


@pytest.mark.parametrize("blank", ["\n", " ", "\t\n"])
def test_a_file_of_white_space_is_refused_at_once(written, blank):
    path, began = written(blank * 30_000 + "x"), time.monotonic()
    with pytest.raises(FileError, match="is no trace"):
        import_trace(path)
    assert time.monotonic() - began < 2  # a pattern that tries each blank line anew takes half a minute


def test_an_error_never_carries_control_codes_of_the_file(written):
    with pytest.raises(FileError) as error:
        import_trace(written(WHOLE.replace(QKV_1, "\x1bP bad \x07\u202e line\n")))
    assert str(error.value).isascii() and str(error.value).isprintable()


def test_a_missing_file_and_a_folder_without_stage_files_are_clear_errors(tmp_path):
    with pytest.raises(FileError, match="could not be read: No such file"):
        import_trace(tmp_path / "absent")
    with pytest.raises(FileError, match="has no APRT stage file"):
        import_trace(tmp_path)


# -- the table

def test_a_wide_table_keeps_each_std_and_leaves_empty_cells_absent(written):
    trace = import_trace(written("layer,ffn_norm,ffn_swiglu\n0,,0.25\n1,1.035,0.067006\n", "x.csv"))
    assert {p: c.at("unknown").std for p, c in trace.cells.items()} == {
        (0, "ffn_swigl"): 0.25, (1, "ffn_norm"): 1.035, (1, "ffn_swigl"): 0.067006,
    }
    assert trace.name == "x" and trace.origin["printed_decimals"] == 6


def test_a_table_says_nothing_of_how_it_was_taken_whatever_its_name(written):
    trace = import_trace(written("layer,qkv\n0,1.5\n", "gguf-last-token.csv"))
    assert trace.facts.scopes == ("unknown",) and trace.facts.definition is None and trace.tokens == ()
    assert trace.cells[0, "qkv"].at("last") is None and trace.cells[0, "qkv"].at("all") is None
    assert [note.split()[0] for note in trace.notes] == ["scope", "tokens", "definition", "not"]


def test_a_tables_scope_can_be_said(written):
    trace = import_trace(written("layer,qkv\n0,1.5\n"), scope="last", tokens=[1, 2], definition="sample")
    assert trace.cells[0, "qkv"].at("last").std == 1.5 and trace.facts.scopes == ("last",) and len(trace.tokens) == 2


def test_the_stds_of_a_text_survive_a_table(written):
    trace = import_trace(written(trace_text()))
    rows = [[str(layer), *(repr(trace.cells[layer, s].at("all").std) for s in GRID_STAGES)] for layer in range(2)]
    table = import_trace(written("\r\n".join(",".join(row) for row in [["layer", *GRID_STAGES], *rows]), "t.csv"),
                         scope="all")
    assert {p: c.at("all").std for p, c in table.cells.items()} == {
        p: c.at("all").std for p, c in trace.cells.items() if p[0] is not None
    }


@pytest.mark.parametrize("table, says", [
    ("layer,qkv\n", "no value under its heading"),
    ("layer,qkv\n0,\n", "no value under its heading"),
    ("layer\n0\n", "line 1: a column layer and columns of attn_norm"),
    ("layer,qkv,speed\n0,1,2\n", "line 1: a column layer and columns of .* 'speed' was found"),
    ("layer,qkv,qkv\n0,1,2\n", "line 1: each column once"),
    ("layer,ffn_swigl,ffn_swiglu\n0,1,2\n", "line 1: each column once"),
    ("layer,qkv\n0,1\n0,2\n", "line 3: a layer after 0"),
    ("layer,qkv\n1,1\n0,2\n", "line 3: a layer after 1"),
    ("layer,qkv\nx,1\n", "line 2: a layer's number was expected, 'x'"),
    ("layer,qkv\n-1,1\n", "line 2: a layer's number"),
    ("layer,qkv\n0,abc\n", "line 2: a finite std of qkv.*'abc' was found"),
    ("layer,qkv\n0,nan\n", "line 2: a finite std of qkv"),
    ("layer,qkv\n0,1e%s\n" % ("0" * 5000), "line 2: a finite std of qkv"),
    ("layer,qkv\n0,inf\n", "line 2: a finite std of qkv"),
    ("layer,qkv\n0,-1\n", "line 2: a finite std of qkv"),
    ("layer,qkv\n0,1,2\n", "line 2: a row of 2 cells"),
    ('layer,qkv\n0,"1\n', "line 2: a row of comma-separated cells"),
])
def test_a_damaged_table_names_the_line(written, table, says):
    with pytest.raises(FileError, match=says):
        import_trace(written(table, "t.csv"))
