"""KL over a text: equal to a plain computation, resumable to the same bytes, a fault named at the worst tokens."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader

from apr_tui.cli.main import main
from core.damage.corpus import read_corpus
from core.damage.few_tensors import Shifts, choices, shifts_of
from core.damage.logits import hidden_states, logits, untapped
from core.damage.run_kl import ChunkStore
from core.formats.open_model import open_model
from core.system.cancel import never
from core.trace.run import open_side
from tests.support.small_models import write_model

WORDS = ("--tokens", "40", "--context", "16", "--worst", "2", "--threads", "1", "--quiet")


@pytest.fixture
def pair(tmp_path):
    a = write_model(tmp_path / "a.gguf", "F32", tokenizer="bpe")
    return str(a), str(write_model(tmp_path / "b.gguf", "Q4_0", tokenizer="bpe"))


def told(capsys, *words):
    assert main(["kl", *words, *WORDS, "--json"]) == 0
    return capsys.readouterr().out


def test_kl_is_what_the_logits_of_both_forwards_say(pair, tmp_path, capsys):
    found = json.loads(told(capsys, *pair, "--out", str(tmp_path / "o")))
    sides = [open_side(open_model(tmp_path / f"{n}.gguf"), "cpu", threads=1) for n in "ab"]
    text = read_corpus(None, sides[0].tokenizer, 16, 40)
    kl = []
    for chunk in text.chunks:
        p, q = (logits(s, hidden_states([s], chunk, untapped(1), lambda: False)[0], lambda: False).double().log_softmax(
            -1).numpy() for s in sides)
        kl += list((np.exp(p) * (p - q)).sum(-1))
    rows = list(csv.DictReader((tmp_path / "o" / "kl.csv").open()))
    assert np.allclose([float(row["kl"]) for row in rows], kl, rtol=1e-9, atol=1e-12) and rows[-1]["nll_a"] == ""
    assert found["mean"] == pytest.approx(np.mean(kl)) and found["tokens"] == 40
    assert found["interval"][0] <= found["mean"] <= found["interval"][1] and found["floor"] < found["mean"]
    assert [w["position"] for w in found["worst"]] == list(np.argsort(kl)[::-1][:2])
    assert sum(b["tokens"] for b in found["buckets"]) == 40
    assert set(found["worst"][0]["cause"]) == {"place", "tensors", "recovered", "nearest"}


def test_a_file_against_itself_is_nothing_and_a_planted_fault_is_named(pair, capsys):
    same = json.loads(told(capsys, pair[0], pair[0]))
    assert same["mean"] == same["max"] == 0 and same["worst"][0]["cause"] is None and same["top1"] == 1
    found = json.loads(told(capsys, pair[0], pair[0], "--plant", "no-activation@1.ffn_swigl"))
    cause = found["worst"][0]["cause"]
    assert cause["place"] == "1.ffn_swigl" and cause["recovered"] > 0.99 and cause["tensors"] == []
    q8 = json.loads(told(capsys, pair[1], pair[1] + "@compute=q8"))
    assert 0 < q8["mean"] < found["mean"]


def test_a_quantised_cache_is_billed_by_head_and_position(pair, tmp_path, capsys):
    wide = str(write_model(tmp_path / "c.gguf", "F32", tokenizer="bpe", head_dim=32))
    found = json.loads(told(capsys, wide, wide + "@cache=q4_0", "--out", str(tmp_path / "o")))
    bill = sum(c["kl"] for c in found["cache"])
    assert 0.5 < bill / found["mean"] < 2 and {c["part"] for c in found["cache"]} == {"q", "k", "v"}
    assert sum(p["tokens"] for p in found["positions"]) == 40 == found["positions"][0]["tokens"]
    assert len((tmp_path / "o" / "cache.csv").read_text().splitlines()) == 1 + len(found["cache"])
    assert "keys" in (tmp_path / "o" / "report.txt").read_text()
    keys = json.loads(told(capsys, wide, wide + "@cache=q8_0/f32"))
    assert 0 < keys["mean"] < found["mean"] and all(c["kl"] == 0 for c in keys["cache"] if c["part"] == "v")
    assert main(["compare", wide, wide + "@cache=q4_0", "--quiet"]) == 0
    told_choice = capsys.readouterr().out
    assert "H3" in told_choice and "KV cache q4_0" in told_choice and "attn_mix" in told_choice
    for file, kind, said in ((wide, "q3", "q5_1"), (pair[0], "q8_0", "blocks of 32")):
        assert main(["kl", file, f"{file}@cache={kind}", *WORDS]) == 2 and said in capsys.readouterr().err


def test_one_other_tensor_is_the_one_that_brings_the_token_back(tmp_path, pair, capsys):
    reader = GGUFReader(pair[0])
    part = next(t for t in reader.tensors if t.name == "blk.2.ffn_down.weight")
    data = bytearray(Path(pair[0]).read_bytes())
    values = np.frombuffer(data, "<f4", part.data.size, int(part.data_offset))
    values *= 1.5
    other = tmp_path / "c.gguf"
    other.write_bytes(data)
    cause = json.loads(told(capsys, pair[0], str(other)))["worst"][0]["cause"]
    assert cause["tensors"] == ["blk.2.ffn_down.weight"] and cause["place"] == "2.ffn_out"


def test_a_stopped_run_goes_on_to_the_same_bytes(pair, tmp_path, capsys, monkeypatch):
    whole, write, out = told(capsys, *pair, "--out", str(tmp_path / "whole")), ChunkStore.write, tmp_path / "o"

    def stops(self, index, found):
        write(self, index, found)
        if index == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(ChunkStore, "write", stops)
    assert main(["kl", *pair, *WORDS, "--json", "--out", str(out)]) == 130
    monkeypatch.undo()
    goes_on(capsys, pair, tmp_path, whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_bytes(pair, tmp_path, capsys):
    whole = told(capsys, *pair, "--out", str(tmp_path / "whole"))
    code = ("import os, signal\nfrom core.damage.run_kl import ChunkStore\nwrite = ChunkStore.write\n"
            "def dies(self, index, found):\n    write(self, index, found)\n"
            "    if index == 1: os.kill(os.getpid(), signal.SIGKILL)\n"
            "ChunkStore.write = dies\nfrom apr_tui.cli.main import main\nimport sys\nmain(sys.argv[1:])")
    words = ["kl", *pair, *WORDS, "--json", "--out", str(tmp_path / "o")]
    assert subprocess.run([sys.executable, "-c", code, *words], check=False).returncode == -signal.SIGKILL
    goes_on(capsys, pair, tmp_path, whole)


def goes_on(capsys, pair, tmp_path, whole):
    """A torn chunk is measured again, a whole one is not, and all ends as the undisturbed run did."""
    out = tmp_path / "o"
    stamp, torn = os.stat(out / "0.f64").st_mtime_ns, (out / "1.f64").read_bytes()
    (out / "1.f64").write_bytes(torn[:-9] + b"\0" * 9)
    capsys.readouterr()
    assert told(capsys, *pair, "--out", str(out)) == whole
    assert os.stat(out / "0.f64").st_mtime_ns == stamp and (out / "1.f64").read_bytes() == torn
    for name in ("kl.csv", "report.md", "report.html", "kl.json"):
        assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_folder_of_a_kl_is_shown_again_and_a_changed_one_is_refused(pair, tmp_path, capsys):
    out = tmp_path / "o"
    said = told(capsys, *pair, "--out", str(out))
    assert main(["show", str(out), "--json"]) == 0 and capsys.readouterr().out == said
    assert main(["show", str(out), "--text"]) == 0 and "Worst tokens" in capsys.readouterr().out
    page, found = (out / "report.html").read_text(), json.loads(said)
    assert str(found["mean"]) in page and "http:" not in page and str(tmp_path) not in page
    (out / "kl.json").write_text(said.replace("mean", "mode"))
    assert main(["show", str(out), "--json"]) == 3 and "was changed" in capsys.readouterr().err


@pytest.mark.parametrize("make,words,code,said", [
    (lambda o: o.write_text("x"), (), 2, "is no folder"),
    (lambda o: (o.mkdir(), (o / "mine").write_text("x")), (), 2, "holds no state"),
    (lambda o: (o.mkdir(), (o / "state-of-kl").write_bytes(b"\xff")), (), 2, "another run"),
    (lambda o: (o.parent / "p").write_text("x"), ("--out", "p/o"), 7, "could not be written"),
    (lambda o: None, ("--corpus", "."), 3, "irectory"),
    (lambda o: o.with_name("e").write_bytes(b"\xff\xfe"), ("--corpus", "e"), 3, "UTF-8"),
    (lambda o: o.with_name("e").write_bytes(b""), ("--corpus", "e"), 2, "tokens"),
])
def test_what_cannot_be_written_or_read_is_refused(pair, tmp_path, capsys, monkeypatch, make, words, code, said):
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "o")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    assert main(["kl", *pair, *WORDS, "--out", "o", *words]) == code
    assert said in capsys.readouterr().err
    assert all(path.read_bytes() == data for path, data in before.items())


def test_the_best_few_tensors_are_found_by_exchange_where_the_first_misleads():
    log_b = np.log([0.5, 0.3, 0.2])
    log_a = np.log([0.2, 0.3, 0.5])
    away = log_a - log_b
    half = np.array([1.0, 0.0, -1.0])
    moves = {"most": 0.7 * away + np.array([0.0, 0.4, 0.0]), "left": away / 2 + half, "right": away / 2 - half}
    few = Shifts(log_a, log_b, moves)
    found = list(choices(few, 2))
    assert found[0] == ("most",) and set(found[1]) == {"left", "right"} and few.left(found[1]) < 1e-12
    assert few.left(()) == pytest.approx(float((np.exp(log_a) * (log_a - log_b)).sum()))


def test_the_moves_of_all_tensors_lead_from_b_to_a(pair):
    a, b = (open_side(open_model(Path(path)), "cpu", threads=1) for path in pair)
    tokens = read_corpus(None, a.tokenizer, 16, 16).chunks[0]
    y_a, y_b = (logits(s, hidden_states([s], tokens, untapped(1), never)[0][-1:], never)[0] for s in (a, b))
    found = shifts_of(a, b, tokens, y_a, y_b, never)
    assert len(found.moves) == sum(len(w.shape) == 2 for w in b.model.file.weights.values())
    y_K = found.log_b + sum(found.moves.values())
    there = y_K - np.logaddexp.reduce(y_K)
    assert np.abs(there - found.log_a).max() < 0.1 * np.abs(found.log_a - found.log_b).max()
    assert found.left(list(found.moves)) < 0.02 * found.left(())


def test_another_vocabulary_is_not_compared(tmp_path, pair, capsys):
    other = write_model(tmp_path / "c.gguf", "F32")
    assert main(["kl", pair[0], str(other), *WORDS]) == 4
    assert "side by side" in capsys.readouterr().err


@pytest.mark.slow
def test_another_engine_is_a_side_and_keeps_its_cache_as_ours_does(tmp_path, capsys):
    pytest.importorskip("llama_cpp")
    path = str(write_model(tmp_path / "m.gguf", "F32", tokenizer="bpe", d_model=256, d_ff=256))
    plain = json.loads(told(capsys, path, f"llama.cpp:{path}"))
    assert plain["b"] == "llama.cpp:m.gguf" and plain["mean"] < 1e-10 and plain["worst"][0]["cause"] is None
    for cache in ("q8_0", "q5_1/q4_0"):
        ours, theirs = (json.loads(told(capsys, path, f"{by}{path}@cache={cache}"))["mean"]
                        for by in ("", "llama.cpp:"))
        assert ours == pytest.approx(theirs, rel=0.02) and ours > 1e-6
    assert main(["kl", path, f"transformers:{path}@cache=q8_0", *WORDS]) == 2 and "cache" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_of_torchrun_tell_what_one_does(pair, tmp_path, capsys):
    whole = told(capsys, *pair, "--out", str(tmp_path / "one"))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
             "apr_tui", "kl", *pair, *WORDS, "--json", "--out", str(tmp_path / "two")]
    run = subprocess.run(words, capture_output=True, text=True, check=False)
    assert run.returncode == 0 and run.stdout == whole, run.stderr
    for name in ("kl.csv", "kl.json", "report.md"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
