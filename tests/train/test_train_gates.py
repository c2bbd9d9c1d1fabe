"""Each published gate: what passes, what fails, what was not measured."""

from __future__ import annotations

import csv
import json
import math
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from core.system import gpus
from core.system.errors import DeviceError, FileError, OutputError
from core.system.json_text import to_json
from core.system.outcome import FAIL, NOT_MEASURED, PASS, Gate
from core.train import log
from core.train.checks.gates import RunFacts, diverged, judge
from core.train.config import TrainOptions, settle
from core.train.records import DONE, Step, TrainResult, Validation


def step(i, **changes):
    usual = dict(step=i, train_loss=5.0, grad_norm=1.0, lr=1e-4, tokens_per_sec=1000.0, wall_ms=40.0 + i % 3,
                 gpu_util_pct=None, gpu_mem_mib=None, tokens_seen=i, clipped_norm=1.0, cursor=i, batch_hash=str(i))
    return Step(**(usual | changes))


@pytest.fixture
def facts(tmp_path):
    plan = settle(TrainOptions(tmp_path, config="370m", steps=60))
    return RunFacts(plan, "cpu", "auto", "cpu (2 cores)", [step(i) for i in range(60)],
                 [Validation(0, 60, 10.0, 10.5, 100, 100)], golden_difference=1e-7, golden_tolerance=2e-5)


def on_gpu(facts, **changes):
    steps = [step(i, gpu_util_pct=98.0, gpu_mem_mib=5000.0) for i in range(60)]
    proof = {"pid": 7, "device_index": 0, "used_memory_mib": 5492.0, "sampled_at_step": 2, "seconds": 0.5}
    usual = dict(device="cuda:0", device_wanted="cuda", device_name="NVIDIA H200", steps=steps, residency=proof)
    return replace(facts, **(usual | changes))


def verdict(facts, id):
    return next(gate for gate in judge(facts) if gate.id == id)


@pytest.mark.parametrize("id, on_cpu, gpu", [
    ("GATE-GPUTRAIN-002", NOT_MEASURED, PASS), ("GATE-GPUTRAIN-003", NOT_MEASURED, PASS),
    ("GATE-GPUTRAIN-004", NOT_MEASURED, PASS), ("GATE-GPUTRAIN-005", PASS, PASS), ("GATE-TRAIN-001", PASS, PASS),
    ("GATE-TRAIN-005", PASS, PASS), ("GATE-TRAIN-007", PASS, PASS), ("GATE-TRAIN-008", PASS, PASS),
    ("GATE-TRAIN-009", PASS, PASS),
])
def test_a_sound_run_passes_and_what_a_cpu_cannot_show_is_not_measured(facts, id, on_cpu, gpu):
    assert verdict(facts, id).verdict == on_cpu and verdict(on_gpu(facts), id).verdict == gpu


def test_a_gate_that_saw_nothing_is_not_measured(facts):
    empty = replace(facts, steps=[], validations=[], golden_difference=None)
    seen = {gate.id: gate.verdict for gate in judge(empty)}
    assert {id for id, v in seen.items() if v != NOT_MEASURED} == {"GATE-TRAIN-009"}


def test_the_evidence_of_residency_is_named_for_who_made_it(tmp_path, facts):
    log.write_residency(tmp_path, {"why_not": "no GPU in this run"})
    assert not list(tmp_path.iterdir()), "nothing was seen"
    log.write_residency(tmp_path, PROOF)
    assert [p.name for p in tmp_path.iterdir()] == [verdict(facts, "GATE-GPUTRAIN-003").evidence]
    row, = csv.DictReader((tmp_path / "gpu_residency.csv").open(newline=""))
    assert row["source"].startswith("NVML ") and row["used_gpu_memory [MiB]"] == "5492" and row["pid"] == "7"
    assert row["process_name"] == sys.executable
    with pytest.raises(OutputError, match=r"gpu_residency\.csv could not be written"):
        log.write_residency(tmp_path / "gone", PROOF)


PROOF = {"pid": 7, "used_memory_mib": 5492.0, "seconds": 0.5}


@pytest.mark.parametrize("id, changes, says", [
    ("GATE-GPUTRAIN-002", {"device": "cpu"}, "asked cuda, ran on cpu"),
    ("GATE-GPUTRAIN-003", {"residency": PROOF | {"seconds": 6.0}}, "6.0 s after step 0"),
    ("GATE-GPUTRAIN-003", {"residency": PROOF | {"used_memory_mib": 0.0}}, "0 MiB"),
    ("GATE-GPUTRAIN-003", {"steps": [step(i, gpu_util_pct=0.0) for i in range(60)]}, "busy in 0 of 50"),
    ("GATE-GPUTRAIN-004", {"steps": [step(i, wall_ms=47.5) for i in range(60)]}, "median 47.50"),
    ("GATE-GPUTRAIN-005", {"golden_difference": 1e-3}, "0.001 nats"),
    ("GATE-TRAIN-001", {"steps": [step(i, gpu_util_pct=9.0, gpu_mem_mib=None if i == 7 else 5e3) for i in range(60)]},
     "first gpu_mem_mib of step 7"),
    ("GATE-TRAIN-001", {"steps": [step(i) for i in (0, 2)]}, "2 records, but not steps 0 to 1"),
    ("GATE-TRAIN-005", {"validations": [Validation(0, 1, 21.7, None, 1, 1)]}, "above from-scratch's cap of 21.65"),
    ("GATE-TRAIN-007", {"violation": ("INV-FINITE", "the loss of step 3 is nan")}, "step 3 is nan"),
    ("GATE-TRAIN-008", {"steps": [step(0, gpu_util_pct=101.0)]}, "step 0 has impossible figures"),
])
def test_a_broken_rule_fails_its_gate_and_says_the_number(facts, id, changes, says):
    gate = verdict(on_gpu(facts, **changes), id)
    assert gate.verdict == FAIL and says in gate.measured


def test_a_gpu_that_nobody_could_ask_leaves_the_records_not_measured_and_says_why(facts):
    silent = on_gpu(facts, steps=facts.steps, residency={"why_not": "nvidia-ml-py is not installed"})
    gate = verdict(silent, "GATE-TRAIN-001")
    assert gate.verdict == NOT_MEASURED and "nvidia-ml-py is not installed" in gate.measured
    assert FAIL not in {gate.verdict for gate in judge(silent)}


def test_a_figure_that_a_slice_of_a_gpu_never_tells_is_not_measured_and_named(facts):
    gate = verdict(on_gpu(facts, steps=[step(i, gpu_mem_mib=5000.0) for i in range(60)]), "GATE-TRAIN-001")
    assert gate.verdict == NOT_MEASURED and "gpu_util_pct" in gate.measured


def test_a_plan_judged_by_the_other_mode_s_cap_fails(facts):
    gate = verdict(replace(facts, plan=replace(facts.plan, cap=10.0)), "GATE-TRAIN-009")
    assert gate.verdict == FAIL


def test_step_times_without_a_budget_or_short_of_the_window_are_shown_but_not_judged(facts):
    gate = verdict(on_gpu(facts, device_name="NVIDIA A100"), "GATE-GPUTRAIN-004")
    assert gate.verdict == NOT_MEASURED and "median 41.00" in gate.measured and "no budget" in gate.measured
    short = verdict(on_gpu(facts, steps=facts.steps[:40]), "GATE-GPUTRAIN-004")
    assert short.verdict == NOT_MEASURED and "20 of 30 steps, budget 47" in short.measured
    assert verdict(replace(facts, budget_ms=30.0), "GATE-GPUTRAIN-004").verdict == FAIL


def test_twice_the_last_validation_is_allowed_and_more_is_not(facts):
    def vals(*losses):
        return [Validation(i, i, loss, None, 1, 1) for i, loss in enumerate(losses)]

    assert diverged(facts.plan, vals(3.0, 6.0)) is None
    assert "2.00 x the epoch before" in diverged(facts.plan, vals(3.0, 6.001))
    assert "is nan" in diverged(facts.plan, vals(3.0, math.nan)) and diverged(facts.plan, vals(21.6)) is None


def test_a_failed_gate_fails_the_exit_code_and_one_not_measured_does_not(tmp_path):
    def result(verdict):
        return TrainResult(DONE, "", tmp_path, 1, 1.0, None, (Gate("G", "", "", verdict, ""),), None)

    assert [result(v).exit_code for v in (PASS, NOT_MEASURED, FAIL)] == [0, 0, 1]


class Refusal(Exception):
    pass


def fake_nvml(**changes):
    """A stand-in for pynvml whose every answer is known."""
    import os

    def refuse(*args):
        raise Refusal

    usual = dict(
        NVMLError=Refusal, NVML_CLOCK_SM=1, NVML_CLOCK_MEM=2, NVML_TEMPERATURE_GPU=0,
        nvmlDeviceGetUtilizationRates=lambda h: SimpleNamespace(gpu=97), nvmlDeviceGetPowerUsage=lambda h: 650_000,
        nvmlDeviceGetMemoryInfo=lambda h: SimpleNamespace(used=6400 << 20),
        nvmlDeviceGetClockInfo=lambda h, kind: {1: 1980, 2: 3201}[kind], nvmlDeviceGetTemperature=lambda h, k: 61,
        nvmlDeviceGetComputeRunningProcesses=lambda h: [SimpleNamespace(pid=1, usedGpuMemory=1 << 20),
                                                        SimpleNamespace(pid=os.getpid(), usedGpuMemory=5492 << 20)])
    changed = {name: refuse if change is None else change for name, change in changes.items()}
    return SimpleNamespace(**(usual | changed))


def test_a_sample_holds_what_nvml_said_and_this_process_s_own_memory():
    sample = gpus.sample_gpu(fake_nvml(), None)
    assert (sample.util_pct, sample.memory_mib, sample.power_w) == (97, 6400, 650)
    assert (sample.sm_mhz, sample.memory_mhz) == (1980, 3201)
    assert (sample.temperature_c, sample.own_mib, sample.n_listed) == (61, 5492, 2)


def test_what_nvml_refuses_is_none_and_not_zero():
    names = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetComputeRunningProcesses",
             "nvmlDeviceGetClockInfo", "nvmlDeviceGetTemperature", "nvmlDeviceGetMemoryInfo")
    sample = gpus.sample_gpu(fake_nvml(**dict.fromkeys(names)), None)
    assert {sample.util_pct, sample.power_w, sample.own_mib, sample.n_listed, sample.sm_mhz} == {None}
    assert sample.memory_mib is None and sample.temperature_c is None
    hidden = fake_nvml(nvmlDeviceGetComputeRunningProcesses=lambda h: [])
    assert gpus.sample_gpu(hidden, None).own_mib is None


def test_a_sampler_without_a_gpu_says_why_and_ends(monkeypatch):
    pynvml = pytest.importorskip("pynvml")

    def absent():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", absent)
    sampler = gpus.GpuSampler(0)
    sampler.start()
    sampler.stop()
    assert sampler.latest is None and "no NVML" in sampler.why_not


SMI = """#!/bin/sh
echo "0, NVIDIA H200, 143771"
echo "1, NVIDIA H200, 143771"
"""


@pytest.mark.parametrize("script, wanted", [
    (SMI, ("cuda:0", "NVIDIA H200 is there")), ("#!/bin/sh\nexit 9\n", None), (None, None)])
def test_where_nvml_is_not_installed_the_driver_s_own_command_is_asked(tmp_path, monkeypatch, script, wanted):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin" if script else str(tmp_path))
    if script:
        (tmp_path / "nvidia-smi").write_text(script)
        (tmp_path / "nvidia-smi").chmod(0o755)
    if wanted is not None:
        assert gpus.choose_device("auto") == wanted and gpus.choose_device("cuda:1")[0] == "cuda:1"
        assert gpus.find_gpus()[0][1] == gpus.Gpu(1, "NVIDIA H200", 143771)
        return
    assert gpus.choose_device("auto")[0] == "cpu"
    with pytest.raises(DeviceError, match="nvidia-ml-py is not installed, and nvidia-smi lists no GPU"):
        gpus.choose_device("cuda")


def test_a_sampler_takes_the_index_where_nvml_does_not_know_the_uuid():
    def unknown(uuid):
        raise Refusal

    nvml = fake_nvml(nvmlDeviceGetHandleByUUID=unknown, nvmlDeviceGetHandleByIndex=lambda index: f"gpu {index}")
    assert gpus.GpuSampler(3, "GPU-x")._handle(nvml) == "gpu 3"
    nvml.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    assert gpus.GpuSampler(3, "GPU-x")._handle(nvml) == "GPU-x"


def test_a_record_comes_back_with_nan_inf_and_what_was_not_measured():
    written = step(3, train_loss=math.nan, grad_norm=-math.inf)
    assert repr(log.read_record(Step, json.loads(to_json(written)))) == repr(written)


def test_a_record_of_another_form_is_named_with_the_run_and_the_field(tmp_path):
    row = {**json.loads(to_json(step(3))), "cursor": []}
    expected = rf"{tmp_path} holds a record that no run writes.*\$\.cursor"
    with pytest.raises(FileError, match=expected), log.reading_records(tmp_path):
        log.read_record(Step, row)
