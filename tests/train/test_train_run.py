"""Whole runs: what they leave behind, how they stop, how they go on, and what is refused before anything is made."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import core.train.checkpoint
from core import session
from core.system.errors import Cancelled, DeviceError, FileError, OutputError, UsageError
from core.system.json_text import to_plain
from core.system.progress import Phase
from core.trace.request import Prompt, Source
from core.train.checkpoint import checkpoints, read_checkpoint
from core.train.config import TrainOptions, settle
from core.train.events import CheckpointWritten, Note, StepTaken
from core.train.log import Lines, rewind
from core.train.reader import RunReader, open_run
from core.train.records import DONE, FAILED, INTERRUPTED, RUNNING, RunControls
from core.train.run import train
from tests.support.training import events, logged_steps, options, run, same_weights, stop_after, write_corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- what a run leaves

def test_a_run_leaves_a_line_for_each_step_and_its_loss_falls(tmp_path):
    result = run(tmp_path, steps=24, steps_per_epoch=8)
    steps = lines(result.out / "train.jsonl")
    assert [s["step"] for s in steps] == list(range(24)) and result.status == DONE
    assert all(s["gpu_util_pct"] is None and s["gpu_mem_mib"] is None for s in steps)
    assert [s["tokens_seen"] for s in steps] == [64 * (i + 1) for i in range(24)]
    assert all(s["tokens_per_sec"] * s["wall_ms"] / 1000 == pytest.approx(64) for s in steps)
    assert steps[-1]["train_loss"] < steps[0]["train_loss"] - 0.3
    vals = lines(result.out / "val.jsonl")
    assert [v["epoch"] for v in vals] == [0, 1, 2] and vals[-1]["val_loss"] < vals[0]["val_loss"]
    assert vals[1]["train_loss"] == pytest.approx(np.mean([s["train_loss"] for s in steps[8:16]]))


def test_a_validation_is_the_mean_loss_over_the_held_out_windows_alone(tmp_path):
    result = run(tmp_path)
    from core.model.arch import read_arch
    from core.train.data.shards import held_out, open_shards
    from core.train.model import load_decoder

    file = session.open_model(result.checkpoint / "model.gguf")
    model = load_decoder(file, read_arch(file))
    corpus = Path(json.loads((result.out / "run.json").read_text())["corpus"]["folder"])
    rows = torch.from_numpy(held_out(open_shards(corpus, 300), 16, 32).astype(np.int64))
    with torch.no_grad():
        assert result.final_val_loss == pytest.approx(model(rows[:, :-1], rows[:, 1:]).item(), rel=1e-6)


def test_a_checkpoint_traces_text_and_its_export_is_faithful(tmp_path):
    result = run(tmp_path)
    for name in ("model.gguf", "model.apr"):
        traced = session.trace(Source(result.checkpoint / name, device="cpu"), Prompt(text="the norm divides"))
        assert "".join(t.text for t in traced.tokens) == "the norm divides" and traced.observed_equals_unobserved
    assert session.check(Source(result.checkpoint / "model.apr", device="cpu"), Prompt(text="the norm")).first is None


def test_the_grid_of_gradients_has_a_row_for_each_layer(tmp_path):
    result = run(tmp_path, grads_every=2)
    tables = lines(result.out / "grads.jsonl")
    assert [t["step"] for t in tables] == [0, 2, 4] and [r["layer"] for r in tables[0]["rows"]] == [0, 1, None]
    seen = open_run(result.out).grads
    assert seen.step == 4 and seen.rows[1].grad_norm == tables[2]["rows"][1]["grad_norm"] > 0


def test_the_same_seed_gives_the_same_steps_and_another_seed_others(tmp_path):
    first, second, other = (run(tmp_path, out=tmp_path / str(i), seed=seed) for i, seed in enumerate((3, 3, 4)))
    assert logged_steps(first.out) == logged_steps(second.out) and same_weights(first.checkpoint, second.checkpoint)
    assert logged_steps(first.out) != logged_steps(other.out)


def test_finetuning_begins_with_the_file_s_weights_and_vocabulary(tmp_path):
    first = run(tmp_path, steps=24, steps_per_epoch=24)
    tuned = run(tmp_path, out=tmp_path / "tuned", init=first.checkpoint / "model.apr")
    plan = json.loads((tuned.out / "run.json").read_text())["plan"]
    assert (plan["mode"], plan["cap"], plan["target_val_loss"]) == ("finetune", 10.0, 2.2)
    assert abs(logged_steps(tuned.out)[0]["train_loss"] - first.final_val_loss) < 0.3


def test_planned_tokens_above_the_corpus_are_said_in_epochs(tmp_path):
    def note(**changes):
        return next(e.text for e in events(tmp_path, **changes) if isinstance(e, Note) and "planned" in e.text)

    assert note(steps=6).endswith("training tokens, 384 planned")
    few = write_corpus(tmp_path / "few", 2)
    text = note(out=tmp_path / "r2", corpus=few, steps=60)
    assert "3840 planned: " in text and "epochs of the data" in text


def test_only_the_two_newest_checkpoints_and_the_best_are_kept(tmp_path, monkeypatch):
    values = iter((4.0, 3.0, 3.5, 3.6, 3.7))
    monkeypatch.setattr("core.train.step.Stepper.validate", lambda *a: next(values))
    result = run(tmp_path, steps=10, steps_per_epoch=2)
    assert [steps for steps, _ in checkpoints(result.out)] == [4, 8, 10]


def test_a_checkpoint_with_somebody_s_own_file_in_it_is_not_dropped(tmp_path):
    def emit(event):
        if isinstance(event, CheckpointWritten) and event.path.name == "step-000001":
            (event.path / "notes.txt").write_text("mine")

    result = train(options(tmp_path, steps=6, steps_per_epoch=20, checkpoint_every=1), emit)
    kept = [steps for steps, _ in checkpoints(result.out)]
    assert kept == [1, 5, 6] and (result.out / "ckpt" / "step-000001" / "notes.txt").read_text() == "mine"


def test_a_run_that_the_system_ends_says_so_in_its_folder(tmp_path):
    def emit(event):
        if isinstance(event, StepTaken) and event.step.step == 2:
            raise PermissionError(13, "Permission denied", "train.bin")

    with pytest.raises(FileError, match=r"train\.bin could not be read"):
        train(options(tmp_path), emit)
    assert open_run(tmp_path / "run").status == FAILED


def test_a_measurement_leaves_no_checkpoint(tmp_path):
    result = run(tmp_path, checkpoints=False)
    assert result.status == DONE and result.checkpoint is None and not (result.out / "ckpt").exists()


def test_a_validation_above_twice_the_last_one_aborts_at_the_epoch_s_end(tmp_path, monkeypatch):
    values = iter((3.0, 6.0, 12.1))
    monkeypatch.setattr("core.train.step.Stepper.validate", lambda *a: next(values))
    result = run(tmp_path, steps=10, steps_per_epoch=2)
    assert result.status == "ABORTED" and "12.1000 of epoch 2 is 2.02 x" in result.sentence and result.exit_code == 1
    assert result.steps_done == 6 and result.checkpoint.name == "step-000006"


# -- stopping and going on

def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path):
    whole = run(tmp_path, out=tmp_path / "whole", steps=9)
    emit, cancelled = stop_after(4)
    part = train(options(tmp_path, steps=9), emit, cancelled)
    assert (part.status, part.exit_code, part.steps_done) == (INTERRUPTED, 130, 4)
    rest = train(options(tmp_path, resume=True, corpus=None, config=None, seed=None))
    assert rest.status == DONE and logged_steps(rest.out) == logged_steps(whole.out)
    assert same_weights(rest.checkpoint, whole.checkpoint)
    assert lines(rest.out / "val.jsonl") == lines(whole.out / "val.jsonl")


KILLED = """
import os, signal, sys
from pathlib import Path
from core.train.events import StepTaken
from core.train.run import train
from tests.support.training import options
def emit(event):
    if isinstance(event, StepTaken) and event.step.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
train(options(Path(sys.argv[1]), steps=9), emit)
"""


def test_a_run_that_was_killed_keeps_every_finished_step_and_trains_them_again_to_the_same_bits(tmp_path):
    whole = run(tmp_path, out=tmp_path / "whole", steps=9)
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -9, killed.stderr
    view = open_run(tmp_path / "run")
    assert [s.step for s in view.steps] == [0, 1, 2, 3, 4] and view.status == RUNNING and view.alive is False
    with (tmp_path / "run" / "train.jsonl").open("a") as log:
        log.write('{"step": 5, "train_')  # as a kill in mid-write leaves it
    rest = train(options(tmp_path, resume=True, corpus=None, config=None, seed=None))
    assert logged_steps(rest.out) == logged_steps(whole.out) and same_weights(rest.checkpoint, whole.checkpoint)
    again = lines(rest.out / "train.superseded.jsonl")
    assert [s["train_loss"] for s in again] == [s["train_loss"] for s in logged_steps(whole.out)[3:5]]
    assert json.loads((rest.out / "run.json").read_text())["resumes"][0]["trained_again"] == 2


def test_a_resume_on_other_text_is_refused_and_harms_nothing(tmp_path):
    emit, cancelled = stop_after(4)
    train(options(tmp_path, steps=9), emit, cancelled)
    before = (tmp_path / "run" / "train.jsonl").read_bytes()
    (tmp_path / "text" / "text00.txt").write_text("other words\n" * 40)
    with pytest.raises(UsageError, match="the corpus is not the one"):
        train(options(tmp_path, resume=True, corpus=None, config=None, seed=None))
    assert (tmp_path / "run" / "train.jsonl").read_bytes() == before


def test_a_run_that_is_still_trained_is_not_resumed_and_a_process_id_that_was_used_again_hinders_nobody(tmp_path):
    emit, cancelled = stop_after(4)
    out = train(options(tmp_path, steps=9), emit, cancelled).out
    document = json.loads((out / "run.json").read_text()) | {"status": RUNNING}
    goes_on = options(tmp_path, resume=True, corpus=None, config=None, seed=None)
    for seconds, is_refused in ((0, True), (-86400, False)):  # a run of yesterday: this process began after it
        (out / "run.json").write_text(json.dumps(document | {"started": document["started"] + seconds}))
        assert open_run(out).alive is is_refused
        if is_refused:
            with pytest.raises(UsageError, match=f"is being trained by process {document['pid']}"):
                train(goes_on)
    assert train(goes_on).status == DONE


def test_a_resume_with_fewer_steps_than_are_done_is_refused_and_harms_nothing(tmp_path):
    out = run(tmp_path).out
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=r"--steps 2: .*step-000006 has 6 steps already"):
        train(options(tmp_path, resume=True, corpus=None, config=None, seed=None, steps=2))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_resumed_run_counts_what_its_rules_were_held_to_before(tmp_path):
    emit, cancelled = stop_after(4)
    train(options(tmp_path, steps=9), emit, cancelled)
    rest = train(options(tmp_path, resume=True, corpus=None, config=None, seed=None))
    measured = {gate.id: gate.measured for gate in rest.gates}
    assert measured["INV-CLIP"] == "9 steps" and measured["INV-GRADIENT"] == "9 gradient tables"
    assert measured["PROBE-FUTURE"] == measured["PROBE-POSITION"] == "tried before step 0"


def test_a_person_can_pause_a_run_save_it_and_stop_it(tmp_path):
    controls, told = RunControls(), []

    def emit(event):
        told.append(event)
        if isinstance(event, StepTaken) and event.step.step == 1:
            controls.pause.set()
            threading.Timer(0.4, controls.pause.clear).start()
        if isinstance(event, StepTaken) and event.step.step == 3:
            controls.save.set()
        if isinstance(event, CheckpointWritten) and event.path.name == "step-000004":
            controls.stop.set()

    result = train(options(tmp_path, steps=40, steps_per_epoch=20), emit, controls=controls)
    assert Phase("paused") in told and result.status == INTERRUPTED and result.steps_done == 5
    assert [steps for steps, _ in checkpoints(result.out)] == [4, 5]
    assert all(step.wall_ms < 400 for step in open_run(result.out).steps[2:3])  # a pause is no part of a step


def test_a_stop_before_the_first_step_leaves_no_run(tmp_path):
    with pytest.raises(Cancelled):
        train(options(tmp_path), cancelled=lambda: True)
    assert not (tmp_path / "run" / "train.jsonl").exists()


# -- what goes wrong

def test_a_disk_that_is_full_at_a_checkpoint_loses_nothing(tmp_path, monkeypatch):
    real, calls = core.train.checkpoint.save_file, []

    def full(*args):
        calls.append(1)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    monkeypatch.setattr(core.train.checkpoint, "save_file", full)
    with pytest.raises(OutputError, match=r"after 6 steps could not be written: No space left.*--resume"):
        run(tmp_path, steps=9)
    out = tmp_path / "run"
    assert [path.name for path in (out / "ckpt").iterdir()] == ["step-000003"]
    assert len(open_run(out).steps) == 6 and open_run(out).status == "FAILED"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert train(options(tmp_path, resume=True, corpus=None, config=None, seed=None)).status == DONE


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_disk_that_is_full_at_a_step_is_named():
    with pytest.raises(OutputError, match="/dev/full could not be written"):
        Lines(Path("/dev/full")).write({"step": 0})


@pytest.mark.parametrize("change, error, says", [
    ({"seed": -1}, UsageError, "--seed -1: a whole number from 0"), ({"seed": 1 << 63}, UsageError, "from 0 to 2"),
    ({"device": "gpu"}, UsageError, "is not a device"), ({"device": "cuda:15"}, DeviceError, "--device cuda:15"),
    ({"resume": True}, FileError, "run.json"), ({"init": Path("nowhere.gguf")}, FileError, "does not exist"),
    ({"corpus": Path("nowhere")}, FileError, "--corpus .*nowhere does not exist"),
    ({"tokenizer": Path("nowhere")}, FileError, "vocab.json and merges.txt is needed"),
    ({"seq": 63, "corpus": "short"}, UsageError, "one window takes 64"),
])
def test_what_cannot_be_trained_is_refused_and_no_folder_is_made(tmp_path, change, error, says):
    if change.get("corpus") == "short":
        (tmp_path / "short").mkdir()
        (tmp_path / "short" / "a.txt").write_text("too short\n" * 3)
        change = change | {"corpus": tmp_path / "short"}
    with pytest.raises(error, match=says):
        run(tmp_path, **change)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_a_run_or_anything_else_is_left_alone(tmp_path):
    run(tmp_path, steps=1)
    with pytest.raises(UsageError, match="already holds a training run"):
        run(tmp_path, steps=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("x")
    with pytest.raises(UsageError, match="is not empty"):
        run(tmp_path, out=tmp_path / "other")
    (tmp_path / "file").write_text("x")
    with pytest.raises(OutputError, match="cannot be made"):
        run(tmp_path, out=tmp_path / "file" / "run")


def test_a_damaged_checkpoint_is_named(tmp_path):
    emit, cancelled = stop_after(4)
    part = train(options(tmp_path, steps=9), emit, cancelled)
    (part.checkpoint / "model.safetensors").write_bytes(b"\0" * 40)
    with pytest.raises(FileError, match=r"step-000004 is damaged.*takes the one before it"):
        train(options(tmp_path, resume=True, corpus=None, config=None, seed=None))


def test_a_checkpoint_whose_state_lacks_something_is_named(tmp_path):
    for state in ("{}", "5", "[]"):
        (tmp_path / "state.json").write_text(state)
        with pytest.raises(FileError, match=r"is damaged.*takes the one before it"):
            read_checkpoint(tmp_path)


# -- watching

def test_a_reader_sees_only_new_lines_and_starts_anew_when_a_log_is_cut(tmp_path):
    emit, cancelled = stop_after(4)
    train(options(tmp_path, steps=9), emit, cancelled)
    reader = RunReader(tmp_path / "run")
    assert len(reader.view().steps) == 4
    train(options(tmp_path, resume=True, corpus=None, config=None, seed=None))
    view = reader.view()
    assert [s.step for s in view.steps] == list(range(9)) and view.status == DONE and view.gates
    assert view.last_step_age_s < 60 and view.checkpoint.name == "step-000009" and view.gpu is None


@pytest.mark.parametrize("name, text", [
    ("run.json", '{"status": "RUNNING"}'), ("run.json", '{"status": "RUNNING", "sentence": "", "plan": 5}'),
    ("run.json", "[" * 100_000), ("train.jsonl", "5\n"), ("train.jsonl", "{}\n"), ("train.jsonl", "[" * 100_000 + "\n"),
    ("train.jsonl", '{"step": 0, "train_loss": [], "grad_norm": 1}\n'), ("grads.jsonl", '{"rows": 5}\n'),
    ("grads.jsonl", '{"rows": [], "parameters": {"a": "x"}, "step": 0}\n'), ("grads.jsonl", '{"health": 7}\n'),
    ("gates.json", "[]"), ("gates.json", '{"gates": [{}]}'),
    ("gates.json", '{"gates": [{"id": "G", "rule": "", "measured": "", "verdict": "MAYBE", "evidence": ""}]}'),
])
def test_a_run_with_a_file_of_another_form_is_a_damaged_run(tmp_path, name, text):
    plan = to_plain(settle(TrainOptions(tmp_path)))
    (tmp_path / "run.json").write_text(json.dumps({"status": DONE, "sentence": "", "device": "cpu", "plan": plan}))
    assert open_run(tmp_path).status == DONE
    (tmp_path / name).write_text(text)
    with pytest.raises(FileError, match=str(tmp_path)):
        open_run(tmp_path)


def test_a_resume_refuses_a_damaged_log_and_leaves_it_as_it_is(tmp_path):
    for name in ("train.jsonl", "val.jsonl"):
        (tmp_path / name).write_text('{"step": 0, "steps_done": 1}\n{"step": 1, "steps_done": 2}\n')
    (tmp_path / "grads.jsonl").write_text('{"step": "x"}\n')
    with pytest.raises(FileError, match="no run writes"):
        rewind(tmp_path, 1)
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == 2


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileError, match="not the folder of a training run"):
        open_run(tmp_path)
