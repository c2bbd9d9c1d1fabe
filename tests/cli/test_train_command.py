"""The command train: words, exit codes, one document, signals, watching, detaching."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from apr_tui.cli import train
from apr_tui.cli.main import main
from apr_tui.render.train_state import age_text, view_text
from core.train.events import StepTaken
from core.train.reader import open_run
from core.train.records import RUNNING
from tests.support.training import options, run, write_config, write_corpus

ROOT = Path(__file__).parents[2]
CURVE = 2e-5  # relative: two processes add up halves of a batch, in float32, over six steps


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def words(folder: Path, *more: str) -> list[str]:
    config = write_config(folder / "small.toml")
    text = write_corpus(folder / "text")
    return ["train", "--config", str(config), "--corpus", str(text), "--device", "cpu", "--threads", "1", "--out",
            str(folder / "run"), *more]


def test_the_command_trains_and_prints_gates_and_the_way_to_trace(tmp_path, capsys):
    assert main(words(tmp_path)) == 0
    out, err = capsys.readouterr()
    assert "PASS         GATE-TRAIN-001     6 steps" in out and "DONE: 6 steps done" in out
    assert f"trace it: apr-tui trace {tmp_path / 'run' / 'ckpt' / 'step-000006' / 'model.gguf'}" in out
    assert "loading torch ..." in err and "epoch 1  val_loss" in err and "\x1b" not in out + err


@pytest.mark.gpu
@pytest.mark.parametrize("compile", ["off", "on"])
def test_a_gpu_trains_proves_its_residency_and_its_checkpoint_is_faithful(tmp_path, capsys, compile):
    corpus = write_corpus(tmp_path / "text", 400)
    asked = ["train", "--config", "tiny", "--corpus", str(corpus), "--device", "cuda", "--steps", "12", "--oracle",
             "--compile", compile, "--out", str(tmp_path / "run"), "--json", "--quiet"]
    assert main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["status"] == "DONE", document
    assert open_run(tmp_path / "run").run["device"] == "cuda:0"
    assert not [gate for gate in document["gates"] if gate["verdict"] == "FAIL"], document["gates"]
    assert main(["check", str(tmp_path / "run" / "ckpt" / "step-000012" / "model.gguf"), "--tokens", "5,1,4"]) == 0


def test_json_is_one_document_on_stdout(tmp_path, capsys):
    assert main(words(tmp_path, "--json", "--quiet", "--steps", "2")) == 0
    out, err = capsys.readouterr()
    document = json.loads(out)
    assert err == "" and document["status"] == "DONE" and document["steps_done"] == 2 and document["exit_code"] == 0
    assert {gate["verdict"] for gate in document["gates"]} == {"PASS", "NOT_MEASURED"}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_ends_the_step_cleanly_with_a_checkpoint_and_130(tmp_path, capsys, monkeypatch, name):
    def progress(given):
        def emit(event):
            if isinstance(event, StepTaken) and event.step.step == 1:
                signal.raise_signal(getattr(signal, name))
        return emit

    monkeypatch.setattr(train, "_progress", progress)
    before = signal.getsignal(signal.SIGINT)
    assert main(words(tmp_path, "--steps", "6")) == 130
    assert "INTERRUPTED: stopped after 3 of 6 steps; go on with --resume" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is before and open_run(tmp_path / "run").checkpoint.name == "step-000003"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert main(["train", "--resume", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run")]) == 0


def test_a_second_signal_of_another_kind_waits_for_the_step_and_the_same_one_does_not():
    with train._stop_on_signals() as cancelled:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)  # as torchrun sends it after a Ctrl-C
        assert cancelled()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


ABSENT = """
import sys, time
started = time.process_time()
from apr_tui.cli.main import main
code = main(["train", "--device", "cuda:15", "--out", sys.argv[1]])
print(code, "torch" in sys.modules, time.process_time() - started)
"""


def test_an_explicit_cuda_that_is_absent_exits_6_within_two_seconds_without_torch_or_a_folder(tmp_path):
    ran = subprocess.run([sys.executable, "-c", ABSENT, tmp_path / "run"], cwd=ROOT, capture_output=True, text=True)
    code, has_torch, seconds = ran.stdout.split()
    assert (code, has_torch) == ("6", "False") and float(seconds) < 2, ran.stdout + ran.stderr
    assert "--device cuda:15" in ran.stderr and not (tmp_path / "run").exists()


@pytest.mark.parametrize("more, code, says", [
    (["--steps", "0"], 2, "a whole number from 1"), (["--mode", "finetune"], 2, "give --init FILE"),
    (["--lr", "nan"], 2, "a number above 0"), (["--device", "gpu"], 2, "is not a device"),
    (["--config", "x"], 2, "370m, tiny"),
])
def test_words_that_make_no_run_are_refused(tmp_path, capsys, more, code, says):
    assert main(words(tmp_path, *more)) == code
    assert says in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_train_without_a_folder_says_what_it_needs(capsys):
    assert main(["train"]) == 2 and "--out DIR" in capsys.readouterr().err


def test_a_detached_run_is_refused_in_the_terminal_that_asks_for_it(tmp_path, capsys):
    assert main(words(tmp_path, "--detach", "--device", "cuda:15")) == 6
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_detached_run_goes_on_by_itself(tmp_path, capsys):
    assert main(words(tmp_path, "--detach", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["log"] == str(tmp_path / "run" / "log.txt")
    for _ in range(120):
        time.sleep(0.5)
        if (tmp_path / "run" / "run.json").exists() and open_run(tmp_path / "run").status != RUNNING:
            break
    assert open_run(tmp_path / "run").status == "DONE"
    assert '"status": "DONE"' in (tmp_path / "run" / "log.txt").read_text()


def test_watching_shows_how_far_a_run_is_and_changes_nothing(tmp_path, capsys):
    result = run(tmp_path)
    before = {path: path.read_bytes() for path in result.out.rglob("*") if path.is_file()}
    assert main(["train", "--watch", str(result.out)]) == 0
    out = capsys.readouterr().out
    assert "DONE - 6 steps done" in out and "step 5 of 6, loss" in out and "last step 0 s ago" in out
    assert {path: path.read_bytes() for path in result.out.rglob("*") if path.is_file()} == before
    assert main(["train", "--watch", str(result.out), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["steps"]) == 6 and document["grads"][0]["rows"] and document["status"] == "DONE"


def test_an_old_step_is_called_stalled_and_a_dead_process_is_named(tmp_path):
    view = open_run(run(tmp_path).out)
    stalled = replace(view, status=RUNNING, sentence="", alive=True, last_step_age_s=200.0)
    assert "last step 3 min 20 s ago; STALLED" in view_text(stalled)
    assert ": GONE\n" in view_text(replace(stalled, alive=False))
    assert "its process is gone. Go on with: apr-tui train --resume --out" in view_text(replace(stalled, alive=False))
    assert "STALLED" not in view_text(replace(stalled, last_step_age_s=5.0))
    assert "no step of 6 is recorded yet" in view_text(replace(stalled, steps=(), last_step_age_s=None))


def test_ages_are_said_in_their_largest_units():
    assert [age_text(s) for s in (None, 0.4, 59.9, 61, 7500)] == ["?", "0 s", "59 s", "1 min 1 s", "2 h 5 min"]


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_two_processes_train_to_the_loss_curve_of_one(tmp_path, parallel):
    alone = run(tmp_path, out=tmp_path / "alone", steps=6)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m",
              "apr_tui.cli.main"]
    resume = ["train", "--resume", "--device", "cpu", "--threads", "1", "--out", str(tmp_path / "run"), "--json"]
    for more in (words(tmp_path, "--seed", "3", "--json"), resume):
        ran = subprocess.run(
            [*launch, *more, "--parallel", parallel], cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr[-2000:]
        assert json.loads(ran.stdout)["status"] == "DONE"  # one process speaks
        shutil.rmtree(tmp_path / "run" / "ckpt" / "step-000006") if more is not resume else None
    one, two = (open_run(path) for path in (alone.out, tmp_path / "run"))
    assert two.run["resumes"][0]["trained_again"] == 3
    for a, b in zip(one.steps, two.steps, strict=True):
        assert b.train_loss == pytest.approx(a.train_loss, rel=CURVE)
        assert b.grad_norm == pytest.approx(a.grad_norm, rel=10 * CURVE)
        assert (a.cursor, a.batch_hash) == (b.cursor, b.batch_hash)
    assert [r.zero_share for r in two.grads.rows] == pytest.approx([r.zero_share for r in one.grads.rows], abs=1e-3)
    for a, b in zip(one.health, two.health, strict=True):
        assert b.noise_power == pytest.approx(a.noise_power, rel=100 * CURVE)
        assert (b.step, b.headroom_at, b.headroom_bits) == (a.step, a.headroom_at, pytest.approx(a.headroom_bits))
    assert two.validations[-1].val_loss == pytest.approx(one.validations[-1].val_loss, rel=CURVE)
    assert two.run["parallel"].startswith(parallel) and options(tmp_path).out == two.out
