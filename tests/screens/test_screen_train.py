"""The training screen: what it shows of a run's folder, what its keys ask of a run, and that watching leaves it alone.

The folder is written line by line, as a run writes it; nothing of torch is loaded.
"""

from __future__ import annotations

import json
import math
import os
import platform
import threading
import time
from dataclasses import asdict

import pytest
from textual.widgets import Input

from apr_tui.screens.train import TrainScreen
from apr_tui.screens.train_prompt import read_line
from apr_tui.view_models.gradients import GradView
from apr_tui.widgets.chart import LABEL, axis_steps, chart, value_range
from apr_tui.workers import train
from apr_tui.workers.train import Training
from core.system.errors import Cancelled, UsageError
from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate
from core.system.progress import Phase
from core.train.config import TrainOptions, settle
from core.train.events import Note, StepTaken
from core.train.reader import RunReader
from core.train.records import GradRow, Grads, Health, Step, TrainResult, Validation
from tests.support.fake_session import (
    FakeSession,
    assert_screen,
    console,
    lines_of,
    spiky_trace,
    styles_of,
    text_of,
    until,
)

GATES = (
    Gate("GATE-GPUTRAIN-002", "an explicit cuda that is absent fails", "asked cuda, ran on cuda:0", PASS, "run.json"),
    Gate("GATE-GPUTRAIN-003", "the own process holds GPU memory", "it is hidden", NOT_MEASURED, "gpu_residency.csv"),
    Gate("GATE-GPUTRAIN-004", "median wall_ms is under its budget", "median 61.20; budget 47 ms", FAIL, "train.jsonl"),
)
SAMPLE = {"step": 39, "at": 1.0, "util_pct": 97.0, "memory_mib": 40123.0, "power_w": 512.0, "sm_mhz": 1980,
          "memory_mhz": 2619, "temperature_c": 61, "own_mib": 39000.0, "n_listed": 1}


def step(i: int, gpu: bool = True, **more: object) -> Step:
    """Step i of a run that learns."""
    known = dict(
        step=i, train_loss=2 + 5 * math.exp(-i / 12) + 0.1 * (i % 3), grad_norm=1 + 0.2 * (i % 5),
        lr=3e-4 * min(i + 1, 8) / 8, tokens_per_sec=30000 + 50 * (i % 7), wall_ms=900.0 if i == 0 else 60 + i % 7,
        gpu_util_pct=97.0 if gpu else None,
        gpu_mem_mib=40123.0 if gpu else None, tokens_seen=1024 * (i + 1), clipped_norm=1.0, cursor=8 * (i + 1),
        batch_hash=f"{i:016x}", gpu_age_ms=400.0 if gpu else None)
    return Step(**(known | more))


def append(path, record) -> None:
    """Write one line, as a run does."""
    with path.open("a") as file:
        file.write(json.dumps(record if isinstance(record, dict) else asdict(record)) + "\n")


def write_run(folder, n_step=40, status="RUNNING", sentence="", gpu=SAMPLE, gates=(), dead=(), checkpoint=20):
    """Write the folder of a run of n_step steps."""
    plan = asdict(settle(TrainOptions(folder, steps=100)))
    document = {
        "status": status, "sentence": sentence, "pid": os.getpid(), "host": platform.node(), "plan": plan,
        "device": "cuda:0" if gpu else "cpu", "device_reason": "asked for", "device_name": "a GPU",
        "parameters": 1049728,
        "command": "apr-tui train --config tiny --out run"}
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(document))
    for i in range(n_step):
        append(folder / "train.jsonl", step(i, gpu is not None))
    for epoch in range(n_step // 20):
        done = 20 * (epoch + 1)
        append(folder / "val.jsonl", Validation(epoch, done, 2.4 + 5 * math.exp(-done / 12), None, 4096, 1024 * done))
    rows = [GradRow(i, 0.0 if i in dead else 0.9 + i / 10, 0.0 if i in dead else 1e-3, 1.0 if i in dead else 0.0)
            for i in range(4)]
    names = {f"blk.{i}.attn_q.weight": (0.5, 1e-3, 0.0) for i in range(4)}
    names["token_embd.weight"] = (0.7, None, 0.25)
    if n_step:
        append(folder / "grads.jsonl", Grads(n_step - 1, (*rows, GradRow(None, 0.7, 2e-4, 0.25)), names,
               Health(n_step - 1, 118.25, "backward, after layer 2", 3.0, 0.5)))
    if gpu:
        append(folder / "gpu.jsonl", gpu)
    if gates:
        (folder / "gates.json").write_text(json.dumps({"gates": [asdict(gate) for gate in gates]}))
    if checkpoint:
        (folder / "ckpt" / f"step-{checkpoint:06d}").mkdir(parents=True)
    return folder


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """Work in a folder of the test's own; the newest step is 4 s old."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(RunReader, "_age", lambda self: 4.0 if self._steps else None)
    monkeypatch.setattr(train, "POLL_S", 0.1)
    started: list[Training] = []
    start = Training.start
    monkeypatch.setattr(Training, "start", lambda self: (started.append(self), start(self))[1])
    yield tmp_path
    for training in started:  # as the console does when it closes
        training.leave(5.0)


def small_session() -> FakeSession:
    """The trace underneath, as short as it may be."""
    return FakeSession(spiky_trace(n_layer=1, words=("a",)))


class Trainer:
    """Stands in for core.train_run.train: steps when it is told to, and obeys wishes as the loop does."""

    def __init__(self, folder, error: Exception | None = None) -> None:
        self.folder, self.error, self.saved, self.step = folder, error, 0, 0
        self.go = threading.Event()

    def __call__(self, options, emit, cancelled, controls):
        emit(Phase("loading torch"))
        emit(Note("device cpu: asked for"))
        self.go.wait(5)
        if self.error is not None:
            raise self.error
        write_run(self.folder, 3, gpu=None, checkpoint=0)
        for self.step in range(3, 2000):
            if controls.pause.is_set():
                emit(Phase("paused"))
            while controls.pause.is_set() and not cancelled():
                time.sleep(0.01)
            append(self.folder / "train.jsonl", step(self.step, gpu=False))
            emit(StepTaken(step(self.step)))
            if controls.save.is_set() or cancelled():
                controls.save.clear()
                self.saved += 1
                (self.folder / "ckpt" / f"step-{self.step:06d}").mkdir(parents=True)
            if cancelled():
                break
            time.sleep(0.03)
        sentence = f"stopped after {self.step + 1} of 100 steps; go on with --resume --out {self.folder}"
        document = json.loads((self.folder / "run.json").read_text()) | {"status": "INTERRUPTED", "sentence": sentence}
        (self.folder / "run.json").write_text(json.dumps(document))
        return TrainResult("INTERRUPTED", sentence, self.folder, self.step + 1, 2.0, None, (), None)


async def show(app, pilot, training: Training) -> TrainScreen:
    """Put a run on the screen."""
    app.training = training
    training.start()
    await pilot.press("t")
    await until(pilot, lambda: isinstance(app.screen, TrainScreen))
    if not training.is_own:
        await until(pilot, lambda: training.view is not None or training.read_error is not None)
        app.screen.show_all()
        await pilot.pause()
    return app.screen


async def trained(app, pilot, folder) -> tuple[Training, Trainer]:
    """Put a run of the console's own on the screen, under way."""
    trainer = Trainer(folder)
    training = Training(folder, TrainOptions(folder, command="apr-tui train --out run"), trainer)
    await show(app, pilot, training)
    trainer.go.set()
    await until(pilot, lambda: "RUNNING" in lines_of(app)[0])
    return training, trainer


async def test_a_run_that_is_watched_stands_on_one_screen(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(write_run(in_folder / "run", gates=GATES).relative_to(in_folder)))
        assert_screen(app, "train")
        assert styles_of(app, "X FAIL") == {"#d75f00"} and styles_of(app, " val ") == {"#ffaf00"}


async def test_the_layers_stand_on_the_shared_grid_and_a_dead_block_is_named(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(write_run(in_folder / "run", dead=(1, 2)).relative_to(in_folder)))
        await pilot.press("o", "j")
        await pilot.pause()
        assert_screen(app, "train_layers")
        assert "X no gradient at all in layers 1, 2" in text_of(app)


async def test_what_no_gpu_measured_is_not_measured_and_never_0(monkeypatch, in_folder):
    sample = SAMPLE | {"util_pct": None, "own_mib": None, "temperature_c": None, "power_w": 0.0}
    async with console(monkeypatch, small_session(), no_color=True) as (app, pilot):
        await show(app, pilot, Training(write_run(in_folder / "run", gpu=sample).relative_to(in_folder)))
        assert_screen(app, "train_nulls")
        text = text_of(app)
        assert "? not measured: util, own, temp" in text and "util 0" not in text
        assert "power 0 W" in text, "a measured 0 is a 0"


async def test_a_run_without_a_gpu_says_so_in_ascii(monkeypatch, in_folder):
    async with console(monkeypatch, small_session(), ascii_only=True) as (app, pilot):
        folder = write_run(in_folder / "run", gpu=None, status="DONE", sentence="40 steps done", gates=GATES[:1])
        await show(app, pilot, Training(folder.relative_to(in_folder)))
        assert_screen(app, "train_ascii")
        assert text_of(app).isascii() and "GPU ? not measured" in text_of(app)


async def test_a_run_of_another_build_is_still_shown(monkeypatch, in_folder):
    folder = write_run(in_folder / "run")
    document = json.loads((folder / "run.json").read_text())
    del document["plan"]["warm_up"]
    (folder / "run.json").write_text(json.dumps(document))
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(folder))
        await pilot.press("o")
        await pilot.pause()
        assert "token_embd" in text_of(app) and "INV-COLLAPSE" not in text_of(app)


async def test_new_lines_of_the_log_reach_the_screen(monkeypatch, in_folder):
    folder = write_run(in_folder / "run", n_step=0, gpu=None, checkpoint=0)
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(folder))
        assert "0 of 100 steps" in lines_of(app)[0] and "no step yet" in text_of(app)
        for i in range(2):
            append(folder / "train.jsonl", step(i, gpu=False))
            await until(pilot, lambda i=i: f" {i + 1} of 100 steps" in lines_of(app)[0])
        with (folder / "train.jsonl").open("a") as file:
            file.write('{"step": 2, "train_l')  # cut by a kill
        await pilot.pause(0.1)
        assert " 2 of 100 steps" in lines_of(app)[0]


@pytest.mark.parametrize(("age", "alive", "state"), [
    (4.0, True, "RUNNING"), (200.0, True, "STALLED"), (200.0, None, "STALLED"), (4.0, False, "GONE")])
async def test_a_stalled_run_shows_the_age_of_its_last_step(monkeypatch, in_folder, age, alive, state):
    monkeypatch.setattr(RunReader, "_age", lambda self: age)
    monkeypatch.setattr("core.train.reader.is_alive", lambda run: alive)
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(write_run(in_folder / "run")))
        assert state in lines_of(app)[0]
        wanted = {200.0: "last step 3 min 20 s ago", 4.0: "last step 4 s ago"}[age]
        assert wanted in text_of(app)
        assert ("its process is gone" in text_of(app)) == (alive is False)


async def test_a_folder_that_is_no_run_is_an_error_in_words(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(in_folder))
        assert "it is not the folder of a training run" in " ".join(text_of(app).split())
        assert "FAILED" in lines_of(app)[0]


async def test_no_key_reaches_a_watched_run(monkeypatch, in_folder):
    folder = write_run(in_folder / "run")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    async with console(monkeypatch, small_session()) as (app, pilot):
        training = Training(folder)
        await show(app, pilot, training)
        for key in ("p", "w"):
            await pilot.press(key)
            assert "it is only watched" in text_of(app)
        await pilot.press("escape", "escape")
        await until(pilot, lambda: app.screen is app.base)
    assert training.shut_down()
    controls = training.controls
    assert not any(event.is_set() for event in (controls.stop, controls.pause, controls.save))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


async def test_p_pauses_our_run_and_p_goes_on(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        _, trainer = await trained(app, pilot, in_folder / "run")
        await pilot.press("p")
        await until(pilot, lambda: "paused; p goes on" in text_of(app))
        assert "! PAUSED" in lines_of(app)[0]
        before = trainer.step
        await pilot.pause(0.05)
        assert trainer.step == before
        await pilot.press("p")
        await until(pilot, lambda: trainer.step > before and "RUNNING" in lines_of(app)[0])


async def test_w_writes_one_checkpoint(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        _, trainer = await trained(app, pilot, in_folder / "run")
        await pilot.press("w")
        await until(pilot, lambda: trainer.saved == 1)
        assert "a checkpoint is written" in text_of(app)


@pytest.mark.parametrize("answer", ["y", "n"])
async def test_escape_asks_before_it_stops_our_run(monkeypatch, in_folder, answer):
    async with console(monkeypatch, small_session()) as (app, pilot):
        training, trainer = await trained(app, pilot, in_folder / "run")
        await pilot.press("escape")
        await pilot.pause()
        assert "Stop this run" in text_of(app)
        await pilot.press(answer)
        if answer == "n":
            await pilot.pause(0.05)
            assert training.is_under_way
            return
        await until(pilot, lambda: not training.is_under_way)
        await until(pilot, lambda: "INTERRUPTED" in lines_of(app)[0])
        assert "go on with --resume" in text_of(app) and trainer.saved == 1
        await pilot.press("r")
        await pilot.pause()
        assert app.screen.query_one(Input).value == f"--resume --out {in_folder / 'run'}"


async def test_enter_traces_the_newest_checkpoint_while_the_run_goes_on(monkeypatch, in_folder):
    fake = small_session()
    async with console(monkeypatch, fake) as (app, pilot):
        training, trainer = await trained(app, pilot, in_folder / "run")
        await pilot.press("enter")
        assert "no checkpoint to trace yet" in text_of(app)
        await pilot.press("w")
        await until(pilot, lambda: training.view.checkpoint is not None)
        await pilot.press("enter")
        await until(pilot, lambda: app.screen is app.base and len(fake.calls) == 2 and app.owner is None)
        assert fake.calls[-1][1].path == training.view.checkpoint / "model.gguf"
        before = trainer.step
        await until(pilot, lambda: trainer.step > before)
        await pilot.press("t")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen) and "RUNNING" in lines_of(app)[0])


async def test_closing_the_console_stops_its_own_run_after_the_step_in_flight(monkeypatch, in_folder, capfd):
    async with console(monkeypatch, small_session()) as (app, pilot):
        training, trainer = await trained(app, pilot, in_folder / "run")
        await pilot.press("q")
    assert training.shut_down()
    assert trainer.saved == 1 and training.result.status == "INTERRUPTED"
    steps = [json.loads(line)["step"] for line in (in_folder / "run" / "train.jsonl").read_text().splitlines()]
    assert steps == list(range(len(steps))), "every step is whole and there once"


async def test_t_on_the_grid_asks_for_the_options_and_words_of_the_run_come_first(monkeypatch, in_folder):
    trainer = Trainer(in_folder / "run")
    monkeypatch.setattr("core.train.run.train", trainer)
    async with console(monkeypatch, small_session(), device="cpu") as (app, pilot):
        await pilot.press("t")
        await pilot.pause()
        field = app.screen.query_one(Input)
        assert field.value.startswith("--config tiny --device cpu --out ./train-")
        field.value = "--config tiny --out run --steps 7 --bogus"
        await pilot.press("enter")
        await until(pilot, lambda: "--bogus" in text_of(app))
        await pilot.press("t")
        await pilot.pause()
        app.screen.query_one(Input).value = "--config tiny --out run --steps 7"
        await pilot.press("enter")
        await until(pilot, lambda: isinstance(app.screen, TrainScreen) and "loading torch ..." in text_of(app))
        assert "device cpu: asked for" in text_of(app) and "STARTING" in lines_of(app)[0]
        assert app.training.options.steps == 7
        app.training.stop()
        trainer.go.set()
        await until(pilot, lambda: not app.training.is_under_way)


async def test_a_run_that_cannot_begin_says_why(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        trainer = Trainer(in_folder / "run", UsageError("run already holds a training run. Give another --out."))
        training = Training(in_folder / "run", TrainOptions(in_folder / "run"), trainer)
        await show(app, pilot, training)
        trainer.go.set()
        await until(pilot, lambda: "FAILED" in lines_of(app)[0])
        assert "X run already holds a training run" in text_of(app)


async def test_a_run_stopped_before_its_first_step_is_no_failure(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        trainer = Trainer(in_folder / "run", Cancelled("stopped before step 0; nothing was trained"))
        await show(app, pilot, Training(in_folder / "run", TrainOptions(in_folder / "run"), trainer))
        trainer.go.set()
        await until(pilot, lambda: "INTERRUPTED" in lines_of(app)[0])


async def test_g_shows_each_gate_with_its_verdict(monkeypatch, in_folder):
    async with console(monkeypatch, small_session()) as (app, pilot):
        await show(app, pilot, Training(write_run(in_folder / "run", gates=GATES)))
        await pilot.press("g")
        await pilot.pause()
        text = text_of(app)
        assert ". pass " in text and "X FAIL" in text and "? not measured GATE-GPUTRAIN-003" in text


@pytest.mark.parametrize("size", [(40, 11), (60, 24), (120, 40), (30, 8)])
async def test_no_size_breaks_it(monkeypatch, in_folder, size):
    async with console(monkeypatch, small_session(), size) as (app, pilot):
        await show(app, pilot, Training(write_run(in_folder / "run", gates=GATES)))
        await pilot.press("o")
        await pilot.press("o")
        await pilot.pause()
        lines = lines_of(app)
        assert len(lines) <= size[1] and ("loss" in text_of(app) or size == (30, 8))


@pytest.mark.parametrize("line", ["--out x --detach", "--help", "--config tiny", "--out 'x", "--out x --steps none"])
def test_a_line_that_is_no_run_is_refused_in_words(line):
    with pytest.raises(UsageError):
        read_line(line)


def test_a_line_may_watch():
    assert not read_line("apr-tui train --watch some/run").is_own


def test_a_spike_among_many_steps_is_still_drawn():
    spiked = [(i, 9.0 if i == 500 else 1.0) for i in range(1000)]
    drawn = ["".join(text for text, _ in line)[LABEL:] for line in chart(spiked, [], 1000, 40, 4)]
    assert all(line.strip() for line in drawn), "from the bottom to the top"
    assert drawn[0].index(drawn[0].strip()) in (16, 17), "in the middle"


def test_a_far_value_is_an_arrow_and_the_rest_keeps_its_scale():
    points = [(0, 5000.0)] + [(i, 60.0 + i % 5) for i in range(1, 40)]
    ends = value_range([v for _, v in points], clips=True)
    assert ends == (60, 64)
    lines = chart(points, [], 64, 40, 4, clips=True)
    assert ("^", "watch") in [(text.strip(), name) for text, name in lines[0]]


def test_what_is_not_finite_has_no_dot():
    lines = chart([(0, math.nan), (1, math.inf)], [(0, math.nan)], 32, 40, 3)
    assert all(not text.strip() for line in lines for text, _ in line)


def test_the_axis_doubles_up_to_the_plan():
    assert [axis_steps(n, 100) for n in (0, 32, 33, 64, 65, 100, 101)] == [32, 32, 64, 64, 100, 100, 101]


def test_marks_of_the_gradients():
    view = GradView()
    rows = tuple(GradRow(i, *v) for i, v in enumerate(
        [(1.0, 1e-3, 0.0), (1.0, 1e-3, 0.6), (0.0, 0.0, 1.0), (0.05, None, 0.0), (math.nan, 1e-3, 0.0)]))
    view.take(Grads(0, rows, {}), 6)
    assert [view.mark(i, "grad_norm") for i in range(6)] == [".", ".", "X", "!", "X", "?"]
    assert [view.mark(i, "update_ratio") for i in range(4)] == [".", ".", "X", "?"]
    assert [view.mark(i, "zero_share") for i in range(3)] == [".", "!", "X"]
    assert view.cell(3, "update_ratio") == ("?", "?") and view.dead() == [2]
