"""The command line keeps its contract: exit codes, one JSON document, each word on its stream, nothing left behind."""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from apr_tui.cli import launch
from apr_tui.cli import main as cli
from apr_tui.cli.commands import COMMANDS, command_parser, find_command
from core import session
from core.model.stages import GRID_STAGES
from core.system.errors import UsageError
from core.trace.request import Prompt, RunOptions, Source, parse_source
from core.train.config import TrainOptions
from tests.support.builders import tiny_vocab
from tests.support.small_models import write_model

TOKENS = ("--tokens", "3,17,5,42")
STEERING = [chr(c) for c in (*range(32), 127, *range(0x80, 0xA0)) if chr(c) != "\n"]
HOSTILE = "\x1b[2Jevil\x9b31m\x07\r\u202e"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("cli")
    write_model(made / "m.gguf", tokenizer="bpe", keys={"qwen2.context_length": 64})
    write_model(made / "bare.gguf")
    return made


@pytest.fixture
def model(folder) -> Path:
    return folder / "m.gguf"


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Run a command in this process; the signal handlers that it sets are put back."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    kept = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}

    def go(*words: object) -> SimpleNamespace:
        code = cli.main([str(w) for w in words])
        out, err = capsys.readouterr()
        return SimpleNamespace(code=code, out=out, err=err, doc=lambda: document(out))

    yield go
    for number, handler in kept.items():
        signal.signal(number, handler)


def document(out: str) -> dict:
    """Parse strictly: NaN and Infinity are no JSON, and nothing stands before or after the document."""
    def refuse(literal: str) -> float:
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(out, parse_constant=refuse)


def refused(result: SimpleNamespace, code: int, says: str = "") -> None:
    assert result.code == code, result
    assert result.err.strip() and "Traceback" not in result.err and says in result.err, result.err
    assert result.out == ""


# --- words ---


def test_help_names_every_command_and_every_commands_help_its_options(run, capsys):
    with pytest.raises(SystemExit) as end:
        run("--help")
    out = capsys.readouterr().out
    assert end.value.code == 0 and all(f"  {name}" in out for name in COMMANDS)
    for name in COMMANDS:
        with pytest.raises(SystemExit) as end:
            run(name, "--help")
        out = capsys.readouterr().out
        assert end.value.code == 0 and COMMANDS[name] in " ".join(out.split()), name
        assert all(word in out for word in command_parser(name).taken), name


def told_of(kind: type) -> set[str]:
    """The names that a class and those before it annotate."""
    return {name for part in kind.__mro__ for name in vars(part).get("__annotations__", {})}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_a_command_says_it_is_told_is_what_its_parser_gives(name):
    parser = command_parser(name)
    given = {action.dest for action in parser._actions} - {"help"}
    told = told_of(find_command(name).Arguments) - {"command", "words", "repeat"}
    assert told <= given, f"{name} never gets {told - given}"
    records = {f.name for kind in (Source, RunOptions, TrainOptions) for f in fields(kind)}
    assert given - told <= records, f"nobody reads {given - told - records}"


def test_the_version_is_printed(run):
    result = run("--version")
    assert result.code == 0 and result.out.startswith("apr-tui ")


@pytest.mark.parametrize("words", [
    ["--no-such-option"], ["frob", "x"], ["trace"], ["trace", "{m}", "--no-such"], ["trace", "{m}", "--thr", "2"],
    ["trace", "{m}", "--tokens", "1,x"], ["trace", "{m}", "--tokens", ""], ["trace", "{m}", "--threshold", "nan"],
    ["trace", "{m}", "--threshold", "1"], ["trace", "{m}", "--layers", "3"], ["trace", "{m}", "--layers", "2..2"],
    ["trace", "{m}", "--layers", "0..9"], ["trace", "{m}", "--scope", "middle"], ["trace", "{m}", "--scope", "pos:x"],
    ["trace", "{m}", "--scope", "pos:²"], ["trace", "{m}", "--threads", "0"], ["trace", "{m}", "--threads", "²"],
    *(["trace", "{m}", option, text] for option, bad in {
        "--tokens": ("-1", "1_0", "1,+2", "1,1_0", "٣", "²", "1,,2", "9" * 19, "1e2", "0x1", "1\n"),
        "--threads": ("1_0", "+1", "٣", "1e1", " 1"), "--generate": ("1_0", "+1", "٣", "-1"),
        "--layers": ("0..1_0", "+0..1", "0..٢"), "--scope": ("pos:1_0", "pos:+1", "pos:٣", "pos:-1"),
        "--threshold": ("1_0", "+10", "٣", "-inf", "inf", "1e999", " 10", "1e1_0"),
    }.items() for text in bad),
    *(["train", "--out", "{d}/t", option, text] for option, bad in {
        "--seed": ("1_0", "+1", "-1", "٣", "9" * 20, "1e2", " 1"), "--batch": ("1_0", "+8"), "--steps": ("٣", "1_0"),
        "--lr": ("1_0", "+1", "nan", "inf", "٣", "-1", "0", "1e-999"), "--budget-ms": ("1_0", "inf"),
        "--warm-up": ("-1", "1_0"),
    }.items() for text in bad),
    ["import", "{m}", "--out", "{d}/t", "--tokens", "1_0"], ["trace", "{m}@threads=1_0"], ["trace", "{m}@threads=+1"],
    ["trace", "{m}", "--plant", "scale@1_0.qkv"], ["trace", "{m}", "--plant", "scale@٢.qkv"],
    ["trace", "{m}", "--device", "cuda:٣"],
    ["trace", "{m}", "--compute", "fp4"], ["trace", "{m}", "--device", "gpu"], ["trace", "{m}", "--generate", "0"],
    ["trace", "{m}", "--plant", "frob@1.qkv"], ["trace", "{m}", "--plant", "scale@9.qkv"],
    ["trace", "{m}", "--prompt", ""], ["trace", "{m}", "--prompt", "a" * 65],
    ["trace", "{m}", "--tokens", "1,99999999"], ["trace", "{m}", "--tokens", "1,-1"],
    ["trace", "{m}", "--prompt", "a", "--tokens", "1"], ["trace", "{m}", "--chat", "--tokens", "1"],
    ["trace", "{m}", "--out", "{m}"], ["trace", "{m}@frob=1"], ["trace", "{m}@threads=x"], ["trace", "{m}@threads=0"],
    ["trace", "{m}@threads=²"], ["trace", "{m}", "--scope", "pos:" + "9" * 5000], ["trace", "{m}", "--layers", "0..²"],
    ["compare", "{m}"], ["compare", "{m}", "{m}@compute=no"], ["import", "{m}"], ["demo"],
    ["demo", "--out", "{d}/x", "--fault", "transpose@1.ffn_silu"]])
def test_a_word_that_cannot_be_is_refused_with_exit_2(words, run, model, tmp_path):
    result = run(*(w.replace("{m}", str(model)).replace("{d}", str(tmp_path)) for w in words))
    refused(result, 2)
    assert not re.search(r"[^.]\.\.(\s|$)", result.err), "a full stop stands twice"
    assert "apr-tui: " in result.err and not list(tmp_path.iterdir())


def test_a_number_is_read_as_it_is_typed(run, model):
    assert run("trace", model, "--tokens", "3, 17,05", "--json").doc()["tokens"][2]["id"] == 5
    for text, value in (("10", 10.0), ("2.5", 2.5), ("1e2", 100.0), (".2E+1", 2.0), ("3.", 3.0)):
        assert command_parser("trace").parse_args(["m", "--threshold", text]).threshold == value
    asked = command_parser("train").parse_args(["--seed", str((1 << 63) - 1), "--lr", "3e-4"])
    assert (asked.seed, asked.lr) == ((1 << 63) - 1, 3e-4)


@pytest.mark.parametrize(("words", "code", "said"), [
    (["--version"], 0, "apr-tui "), (["trace", "nowhere.gguf"], 3, ""), ([], 2, "")])
def test_the_package_runs_as_the_command_does(words, code, said):
    ended = subprocess.run([sys.executable, "-m", "apr_tui", *words], capture_output=True, text=True, check=False,
                           stdin=subprocess.DEVNULL)
    assert (ended.returncode, ended.stdout[:8]) == (code, said), ended
    assert code == 0 or ended.stderr.startswith("apr-tui: ")


def test_without_a_terminal_the_console_says_what_to_use_instead(run, model):
    refused(run(), 2, "apr-tui trace MODEL")
    refused(run(model), 2, "apr-tui trace MODEL")


@pytest.mark.parametrize(("text", "wanted"), [
    ("m.gguf", {}), ("m.gguf@compute=q8", {"compute": "q8"}),
    ("m.gguf@compute=bf16,device=cuda:0,threads=3", {"compute": "bf16", "device": "cuda:0", "threads": 3}),
    ("llama.cpp:m.gguf", {"scheme": "llama.cpp"}),
    ("transformers:m.gguf@threads=2", {"scheme": "transformers", "threads": 2})])
def test_a_side_carries_its_own_settings_over_the_common_ones(text, wanted):
    common = Source(Path(), compute="f32", device="cpu", threads=1, plant="scale@1.qkv")
    got = parse_source(text, common)
    assert got.path == Path("m.gguf") and got.plant == "scale@1.qkv"
    for name, usual in (("scheme", ""), ("compute", "f32"), ("device", "cpu"), ("threads", 1)):
        assert getattr(got, name) == wanted.get(name, usual)


def test_a_file_whose_name_holds_the_marks_is_taken_as_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("llama.cpp:x@compute=q8", "a@b.gguf"):
        Path(name).touch()
        assert parse_source(name, Source(Path())) == Source(Path(name))
    assert parse_source("gone@b.gguf", Source(Path())).path == Path("gone@b.gguf")
    with pytest.raises(UsageError, match="not a setting"):
        parse_source("gone@frob=1", Source(Path()))


# --- trace ---


def test_a_trace_prints_grid_findings_and_next_tokens(run, model):
    result = run("trace", model, *TOKENS)
    assert result.code == 0
    assert all(word in result.out for word in ("swigl", "Traced equals untraced: yes", "Next token", "Findings"))
    assert "tracing" in result.err and "\x1b" not in result.out + result.err


def test_the_document_of_a_trace_has_the_keys_of_the_contract(run, model):
    doc = run("trace", model, *TOKENS, "--json").doc()
    keys = {"schema", "model", "tokens", "scope", "grid", "findings", "top", "observed_equals_unobserved", "planted"}
    assert keys <= set(doc) and doc["schema"] == "apr-tui/1" and doc["observed_equals_unobserved"] is True
    assert [t["id"] for t in doc["tokens"]] == [3, 17, 5, 42] and doc["planted"] is None and len(doc["top"]) == 5
    assert {s: len(row) for s, row in doc["grid"].items()} == dict.fromkeys(GRID_STAGES, 3)
    assert set(doc["top"][0]) == {"id", "text", "logit"}


def test_a_look_at_a_stage_has_its_tokens_weights_histogram_attention_and_lens(run, model):
    told = run("look", model, "1.attn_out", *TOKENS, "--json", "--quiet").doc()
    assert set(told) == {"schema", "model", "place", "planted", "scopes", "tokens", "weights", "histogram", "attention",
                         "lens", "findings"}
    traced = session.trace(Source(model), Prompt(tokens=(3, 17, 5, 42)))
    assert told["scopes"]["all"]["std"] == traced.cells[1, "attn_out"].at("all").std
    assert [t["id"] for t in told["tokens"]] == [3, 17, 5, 42] and told["tokens"][2]["std"] == (
        traced.cells[1, "attn_out"].at("pos:2").std)
    assert told["weights"][0]["name"] == "blk.1.attn_output.weight" and sum(told["histogram"]["counts"]) == 256
    assert len(told["lens"]) == 5 and all(sum(row) == pytest.approx(1) for head in told["attention"] for row in head)
    said = run("look", model, "1.attn_out", *TOKENS, "--quiet").out
    assert "blk.1.attn_output.weight" in said and "if the model stopped after this layer" in said
    assert run("look", model, "logits", *TOKENS, "--json", "--quiet").doc()["lens"] == []
    refused(run("look", model, "9.attn_out", *TOKENS), 2)


def test_numbers_that_are_not_finite_are_strings_and_a_planted_bug_is_told(run, model):
    result = run("trace", model, *TOKENS, "--json", "--plant", "nan@0.embedding".replace("0.", ""))
    doc = result.doc()
    assert result.code == 0 and doc["planted"] == "nan@embedding"
    first = doc["findings"][0]
    assert (first["kind"], first["strength"], first["stage"], first["token"]) == ("nan", "hint", "embedding", 3)
    assert set(first) == {"kind", "strength", "layer", "stage", "scope", "token", "channel", "measured", "baseline",
                          "rule", "sentence"}
    assert doc["observed_equals_unobserved"] is True, "NaN has the same bits on both sides"
    assert "PLANTED" in run("trace", model, *TOKENS, "--plant", "scale@1.qkv").out


def test_quiet_says_nothing_on_stderr(run, model, tmp_path):
    result = run("trace", model, *TOKENS, "--quiet", "--out", tmp_path / "b")
    assert (result.code, result.err) == (0, "")


def test_a_prompt_file_loses_one_trailing_newline(run, model, tmp_path):
    file = tmp_path / "p.txt"
    file.write_text("hello world\n\n")
    with_file = run("trace", model, "--prompt-file", file, "--json").doc()
    assert with_file["tokens"] == run("trace", model, "--prompt", "hello world\n", "--json").doc()["tokens"]
    file.write_bytes(b"\xff\xfe")
    refused(run("trace", model, "--prompt-file", file), 3, "UTF-8")
    refused(run("trace", model, "--prompt-file", tmp_path / "gone.txt"), 3, "gone.txt")
    refused(run("trace", model, "--prompt-file", tmp_path), 3)


def test_the_default_prompt_is_fed_and_chat_puts_it_through_the_template(run, model):
    plain = run("trace", model, "--json").doc()["tokens"]
    chat = run("trace", model, "--json", "--chat").doc()["tokens"]
    assert "".join(t["text"] for t in plain) == "What is 2+2?" and len(chat) > len(plain)
    assert "<|im_start|>" in [t["text"] for t in chat]


def test_layers_leave_the_others_empty(run, model):
    grid = run("trace", model, *TOKENS, "--layers", "1..2", "--json").doc()["grid"]
    assert all(row[0] is None and isinstance(row[1], float) for row in grid.values())


def test_generate_is_off_and_alone_means_eight(run, model):
    assert run("trace", model, *TOKENS, "--json").doc()["generated"] is None
    two = run("trace", model, *TOKENS, "--json", "--generate", "2").doc()["generated"]
    eight = run("trace", model, *TOKENS, "--json", "--generate").doc()["generated"]
    assert two is not None and eight.startswith(two) and len(eight) > len(two)
    assert "Generated: " in run("trace", model, *TOKENS, "--generate").out


def test_without_a_witness_nothing_is_claimed(run, model):
    result = run("trace", model, *TOKENS, "--no-witness", "--json")
    assert result.code == 0 and result.doc()["observed_equals_unobserved"] is None


@pytest.mark.parametrize("command", ["trace", "check", "compare"])
def test_a_run_that_watching_changes_exits_1(command, run, model, monkeypatch):
    names = ("core.trace.run", "core.proof.measure_pair")
    modules = [importlib.import_module(name) for name in names]  # both, before one is changed
    for module in modules:
        monkeypatch.setattr(module, "same_bits", lambda a, b: False)
    assert run(command, *([model] * (2 if command == "compare" else 1)), *TOKENS).code == 1


def test_the_grid_goes_to_a_csv_file_and_an_unwritable_one_exits_7(run, model, tmp_path):
    assert run("trace", model, *TOKENS, "--csv", tmp_path / "g.csv").code == 0
    lines = (tmp_path / "g.csv").read_text().splitlines()
    assert lines[0] == "layer," + ",".join(GRID_STAGES) and len(lines) == 4
    assert run("trace", model, *TOKENS, "--csv", tmp_path / "g.csv").code == 0
    before = model.read_bytes()
    refused(run("trace", model, *TOKENS, "--csv", model), 2, "is no grid of apr-tui")
    assert model.read_bytes() == before
    result = run("trace", model, *TOKENS, "--csv", tmp_path / "no" / "g.csv")
    assert result.code == 7 and "g.csv" in result.err


@pytest.mark.skipif(os.getuid() == 0 and not Path("/proc/self").exists(), reason="no place that root cannot write")
def test_an_output_that_cannot_be_made_exits_7_before_the_work(run, model):
    refused(run("trace", model, *TOKENS, "--out", "/proc/nowhere/x"), 7)


def test_a_bundle_is_written_refused_forced_shown_and_traced_again(run, model, tmp_path):
    out = tmp_path / "b"
    assert run("trace", model, *TOKENS, "--out", out).code == 0
    refused(run("trace", model, *TOKENS, "--out", out), 2, "--force")
    assert run("trace", model, *TOKENS, "--out", out, "--force").code == 0
    shown = run("show", out, "--text")
    assert shown.code == 0 and "swigl" in shown.out
    assert run("show", out, "--json").doc()["tokens"] == run("trace", model, *TOKENS, "--json").doc()["tokens"]
    refused(run("show", out), 2, "terminal")
    refused(run("show", tmp_path / "gone", "--text"), 3)
    refused(run("check", out, "--model", model), 4, "--values")


LONG = "x" * 300  # no file system has such a name


@pytest.mark.parametrize(("words", "code"), [
    (["trace", LONG], 3), (["import", LONG, "--out", "{d}/x"], 3), (["show", LONG, "--text"], 3),
    (["train", "--corpus", LONG, "--out", "{d}/x"], 3), (["convert", LONG, "{d}/x.gguf"], 3),
    (["trace", "{m}", "--out", LONG], 7), (["trace", "{m}", "--csv", LONG], 7), (["demo", "--out", LONG], 7),
    (["convert", "{m}", f"{LONG}.gguf"], 7), (["train", "--out", LONG], 7)])
def test_what_cannot_be_read_exits_3_and_what_cannot_be_written_7(words, code, run, model, tmp_path):
    result = run(*(w.replace("{m}", str(model)).replace("{d}", str(tmp_path)) for w in words))
    refused(result, code, LONG[:80])
    assert "[Errno" not in result.err and ("could not be read" in result.err or code == 7 or words[0] != "import")


@pytest.mark.parametrize(("error", "code", "says"), [
    (PermissionError(13, "Permission denied", "p.gguf"), 3, "p.gguf could not be read: Permission denied. Check"),
    (OSError(28, "No space left on device"), 7, "the output could not be written: No space left on device."),
    (OSError(12, "Cannot allocate memory"), 3, "the system refused: Cannot allocate memory"),
    (PermissionError(13, "Not so.", "p.gguf"), 3, "p.gguf could not be read: Not so. Check"),
    (OSError("libcuda.so.1: cannot open shared object file"), 6, "the device failed: libcuda.so.1")])
def test_an_error_of_the_system_leaves_by_the_door_that_it_belongs_to(error, code, says, run, model, monkeypatch):
    def refuse(*args: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(session, "trace", refuse)
    refused(run("trace", model), code, says)


# --- check, compare ---


def test_a_check_passes_a_clean_model_and_fails_a_planted_one(run, model):
    clean = run("check", model, *TOKENS, "--json")
    doc = clean.doc()
    assert clean.code == 0 and (doc["verdict"], doc["first"]) == ("PASS", None) and doc["reasons"]
    bad = run("check", model, *TOKENS, "--json", "--plant", "nan@2.ffn_up")
    doc = bad.doc()
    assert bad.code == 1 and doc["verdict"] == "FAIL" and doc["measured"] == "inf"
    assert doc["first"] == {"layer": 2, "stage": "ffn_up", "token": 3, "channel": 0}
    assert "PLANTED" in run("check", model, *TOKENS, "--plant", "nan@2.ffn_up").out


COMPARED = {"verdict", "first", "side", "measured", "floor", "multiple", "reasons", "compared"}


def test_a_comparison_exits_by_its_verdict_and_its_document_has_the_keys_of_the_contract(run, model, folder, tmp_path):
    same = run("compare", model, f"{model}@threads=1", *TOKENS, "--json")
    doc = same.doc()
    assert same.code == 0 and doc["verdict"] == "AGREE" and set(doc) >= COMPARED and doc["first"] is None
    assert set(doc["compared"]) == {"tokens", "scope", "a", "b"} and doc["compared"]["tokens"] == [3, 17, 5, 42]
    bug = run("compare", model, model, *TOKENS, "--plant", "scale@1.ffn_out", "--json")
    doc = bug.doc()
    assert bug.code == 1 and (doc["verdict"], doc["side"]) == ("H2", "A") and doc["first"]["stage"] == "ffn_out"
    choice = run("compare", model, f"{model}@compute=bf16", *TOKENS, "--json")
    assert choice.code == 0 and choice.doc()["verdict"] == "H3"
    other = write_model(tmp_path / "o.gguf", n_layer=2)
    fact = run("compare", folder / "bare.gguf", other, *TOKENS, "--json")
    assert fact.code == 4 and fact.doc()["verdict"] == "NOT_COMPARABLE"
    empty = run("compare", model, model, *TOKENS, "--scope", "pos:99", "--plant", "scale@1.qkv")
    assert empty.code == 4 and "scope" in empty.out


def test_prompts_are_one_a_line_whatever_else_a_line_holds(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\x0cpage\r\n\n two\u2028lines\n", newline="")
    asked = SimpleNamespace(prompts=path, prompt=None, prompt_file=None, tokens=None, chat=False)
    assert [p.text for p in launch.prompts_of(asked)] == ["one\x0cpage", " two\u2028lines"]


def test_the_verdict_stands_in_words_too(run, model):
    result = run("compare", model, model, *TOKENS, "--plant", "scale@1.ffn_out")
    assert result.code == 1 and "PLANTED scale@1.ffn_out in A" in result.out
    assert "H2" in result.out and "1.ffn_out" in result.out and "\x1b" not in result.out


def test_a_comparison_writes_both_bundles_cells_and_verdict(run, model, tmp_path):
    out = tmp_path / "pair"
    assert run("compare", model, f"{model}@threads=1", *TOKENS, "--out", out).code == 0
    for name in ("a/stats.csv", "b/stats.csv", "cells.csv", "verdict.json", "manifest.json"):
        assert (out / name).stat().st_size > 0
    header = (out / "cells.csv").read_text().splitlines()[0]
    assert header == "layer,stage,scope,ratio,rel_l2,cosine,max_abs,token,channel,inherited,local"
    assert document((out / "verdict.json").read_text())["verdict"] == "AGREE"
    assert run("check", model, *TOKENS, "--out", tmp_path / "check").code == 0
    for words in (("compare", model, f"{model}@threads=1", *TOKENS, "--out", out),
                  ("check", model, *TOKENS, "--out", tmp_path / "check")):
        refused(run(*words), 2, "--force")
        assert run(*words, "--force").code == 0, words
    header = (tmp_path / "check" / "local.csv").read_text().splitlines()[0]
    assert header == "layer,stage,nmse,sqnr_db,floor,token,channel"


# --- bad input ---


@pytest.mark.parametrize("damage", [
    lambda b: b"", lambda b: b"GG", lambda b: os.urandom(4096), lambda b: b[:3000], lambda b: b[:-64],
    lambda b: b[:4] + b"\xff" * 12 + b[16:]])
def test_a_damaged_file_exits_3(damage, run, model, tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(damage(model.read_bytes()))
    refused(run("trace", bad, *TOKENS), 3, "bad.gguf")


def test_what_is_no_file_exits_3(run, tmp_path):
    refused(run("trace", tmp_path / "gone.gguf"), 3, "gone.gguf")
    refused(run("trace", tmp_path), 3)
    refused(run("trace", "m" * 5000), 3, "File name too long")
    refused(run("compare", tmp_path / "gone.gguf", tmp_path / "gone.gguf"), 3)


def test_a_file_without_a_tokenizer_says_how_to_feed_it(run, folder):
    refused(run("trace", folder / "bare.gguf"), 3, "--tokens")
    assert run("trace", folder / "bare.gguf", *TOKENS).code == 0


def test_an_absent_device_exits_6(run, model):
    refused(run("trace", model, *TOKENS, "--device", "cuda:9"), 6, "--device cpu")


def test_an_internal_error_leaves_a_log_and_exits_70(run, model, monkeypatch, tmp_path):
    def broken(*args: object, **more: object) -> None:
        raise ZeroDivisionError(f"a programmer's mistake {HOSTILE}")

    monkeypatch.setattr(session, "trace", broken)
    result = run("trace", model, *TOKENS)
    refused(result, 70, "ZeroDivisionError")
    log = Path(result.err.strip().split("the log is ")[1])
    assert log.is_relative_to(tmp_path / "state") and "a programmer's mistake" in log.read_text()


def test_a_log_is_written_whatever_it_quotes_and_wherever_home_is(run, model, monkeypatch, tmp_path):
    def broken(*args, **kwargs):
        raise RuntimeError("a name \udcff of no encoding \u4f60")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "~nobody-here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Path, "home", broken)
    monkeypatch.setattr(session, "trace", broken)
    result = run("trace", model)
    log = Path(result.err.strip().rpartition(" ")[2])
    assert result.code == 70 and "Traceback" not in result.err and "of no encoding \u4f60" in log.read_text("utf-8")


@pytest.mark.parametrize("redirect, code", [
    ("doctor >&-", 0), ("trace nowhere.gguf 2>&-", 3), ("<&-", 2), ("doctor >/dev/full", 7)])
def test_a_stream_that_is_closed_or_full_is_no_internal_error(redirect, code, tmp_path):
    line = f"exec {shlex.quote(sys.executable)} -m apr_tui {redirect}"
    ended = subprocess.run(["sh", "-c", line], stdin=subprocess.PIPE, capture_output=True, text=True, check=False,
                           env=os.environ | {"XDG_STATE_HOME": str(tmp_path)})
    assert (ended.returncode, "internal error" in ended.stderr) == (code, False), ended


def test_a_name_that_the_terminal_cannot_show_is_escaped(model, tmp_path):
    named = tmp_path / "m-é你.gguf"
    shutil.copy(model, named)
    ended = subprocess.run(
        [sys.executable, "-m", "apr_tui", "trace", named, *TOKENS, "--quiet"], capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONIOENCODING": "ascii", "XDG_STATE_HOME": str(tmp_path)})
    assert ended.returncode == 0 and r"m-\xe9\u4f60.gguf" in ended.stdout, ended


def test_an_interrupted_run_exits_130(run, model, monkeypatch):
    def interrupted(*args: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "trace", interrupted)
    refused(run("trace", model, *TOKENS), 130, "interrupted")


def hostile_model(path: Path) -> Path:
    """A model whose name, tokens, architecture note and generated text would steer a terminal."""
    tokens = list(tiny_vocab("bpe")["tokenizer.ggml.tokens"])
    tokens[-3:] = [f"{HOSTILE}{i}" for i in range(3)]
    keys = {"tokenizer.ggml.tokens": tokens, "general.name": HOSTILE, "apr_tui.planted": HOSTILE}
    return write_model(path, tokenizer="bpe", keys=keys, changes={"output.weight": lambda x: x * 0})


def test_names_and_tokens_of_a_file_never_reach_the_terminal_as_control_codes(run, tmp_path):
    model = hostile_model(tmp_path / f"m{HOSTILE.replace(chr(13), '')}.gguf")
    n_vocab = session.open_model(model).weights["token_embd.weight"].shape[0]
    tokens = ("--tokens", f"{n_vocab - 1},{n_vocab - 2},10")
    for words in (["trace", model, "--generate", "3"], ["check", model], ["compare", model, f"{model}@threads=1"],
                  ["compare", model, model, "--plant", "nan@1.qkv"]):
        result = run(*words, *tokens)
        assert result.code in (0, 1), result
        assert not [c for c in (*STEERING, "\u202e") if c in result.out + result.err], result
    for words in (["trace", model, "--json"], ["compare", model, model, "--json"]):
        out = run(*words, *tokens).out
        assert not [c for c in STEERING if c in out]
    gone = run("trace", tmp_path / f"gone{HOSTILE}.gguf")
    assert gone.code == 3 and not [c for c in STEERING if c in gone.err]


@pytest.mark.parametrize("more", [
    {"keys": {"general.architecture": HOSTILE}}, {"keys": {"qwen2.rope.scaling.type": HOSTILE}},
    {"keys": {"tokenizer.ggml.pre": HOSTILE}}, {"keys": {"tokenizer.ggml.model": HOSTILE}}])
def test_a_refusal_never_carries_a_files_control_codes(more, run, tmp_path):
    result = run("trace", write_model(tmp_path / "h.gguf", tokenizer="bpe", **more), "--prompt", "hello")
    assert not [c for c in STEERING if c in result.out + result.err], result.err


# --- a real process ---


def start(*words: object, **more) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "2"}
    return subprocess.Popen([sys.executable, "-m", "apr_tui", *map(str, words)], stdin=subprocess.DEVNULL, env=env,
                            text=True, cwd=Path(__file__).parents[2], **more)


@pytest.mark.parametrize("number", [
    signal.SIGINT, signal.SIGTERM, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)])
def test_a_signal_in_the_middle_exits_130_and_leaves_nothing(number, tmp_path):
    model = write_model(tmp_path / "long.gguf", n_layer=48)
    out = tmp_path / "out" / "b"
    process = start("trace", model, *TOKENS, "--generate", "400", "--out", out,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = ""
    while "generating" not in said and process.poll() is None:
        said += process.stderr.readline()
    time.sleep(0.1)
    while process.poll() is None:  # an impatient hand; timeout sends two
        process.send_signal(number)
        time.sleep(0.01)
    printed, rest = process.communicate(timeout=60)
    assert process.returncode == 130, said + rest
    assert "Traceback" not in rest and "interrupted" in rest and printed == ""
    assert [p.name for p in tmp_path.iterdir() if p.name != "long.gguf"] in ([], ["out"]) and not out.exists()
    assert not list((tmp_path / "out").glob("**/*")) if (tmp_path / "out").exists() else True


def test_a_signal_after_the_bundle_is_written_does_not_call_it_interrupted(run, model, tmp_path, monkeypatch):
    from core.bundle import report, writer  # which has the report's function by now

    assert writer

    def late(*more):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)
        return "the report\n"

    monkeypatch.setattr(report, "report_text", late)
    written = run("trace", model, *TOKENS, "--out", tmp_path / "b")
    assert (written.code, written.out) == (0, "the report\n") and (tmp_path / "b" / "manifest.json").is_file()
    assert run("trace", model, *TOKENS).code == 130


def test_a_reader_that_leaves_early_is_no_error_to_tell(model):
    process = start("trace", model, *TOKENS, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(60) != 70 and "Traceback" not in err and "Exception" not in err and "BrokenPipe" not in err, err


def test_the_command_runs_as_a_process_with_one_document_on_stdout(model):
    process = start("trace", model, *TOKENS, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0 and document(out)["schema"] == "apr-tui/1" and "tracing" in err
