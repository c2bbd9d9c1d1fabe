"""The ladder of grafts, its memory, and the reproducer. The verdict beneath them: test_compare.py."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from core import session
from core.model.arch import Arch
from core.system.errors import Cancelled, UsageError
from core.system.progress import Phase, Reached
from core.trace.events import Event
from core.trace.request import Prompt, Source
from tests.support.small_models import IDS, write_model

PROMPT = Prompt(tokens=IDS)
LINEAR_STAGES = ("qkv", "attn_out", "ffn_gate", "ffn_up", "ffn_out")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("bisection") / "m.gguf", "Q8_0", n_layer=5)


def bisect(model: Path, plant: str | None, **more):
    return session.bisect(Source(model, device="cpu", plant=plant), Source(model, device="cpu"), PROMPT, **more)


@pytest.mark.parametrize(("kind", "stage", "layer"), [
    pytest.param(kind, stage, layer, marks=() if (turn + layer) % 2 == 0 else pytest.mark.slow)  # in turn, by default
    for turn, (kind, stage) in enumerate((
        ("scale", "ffn_out"), ("transpose", "attn_out"), ("gelu", "ffn_silu"), ("no-mask", "attn_mix"),
        ("twice-residual", "output"), ("norm-plus-one", "ffn_norm")))
    for layer in (0, 3)])
def test_the_layer_where_a_bug_enters_is_found_and_its_stage_brings_all_back(
        model: Path, kind: str, stage: str, layer: int):
    result = bisect(model, f"{kind}@{layer}.{stage}")
    assert result.comparison.verdict == "H2" and result.comparison.side == "A"
    assert result.comparison.first == (layer, stage)
    assert result.ladder is not None and result.ladder.entry == layer
    rung = next(r for r in result.ladder.rungs if r.place == (layer, stage))
    assert rung.recovered == pytest.approx(1.0, abs=1e-6), result.ladder.rungs


def test_what_comes_before_the_bug_brings_nothing_back(model: Path):
    result = bisect(model, "scale@2.ffn_swigl")
    assert result.ladder is not None
    for rung in result.ladder.rungs:
        if rung.place in {(2, "attn_norm"), (2, "qkv"), (2, "ffn_norm"), (2, "ffn_gate"), (1, "output")}:
            assert rung.recovered == pytest.approx(0.0, abs=1e-6), rung


@pytest.mark.parametrize("plant", ["twice-residual@3.output", "scale@2.ffn_swigl", "shift@embedding"])
def test_grafts_that_start_where_they_part_are_those_of_whole_runs_in_fewer_layers(
        model: Path, plant: str, monkeypatch: pytest.MonkeyPatch):
    def ladder() -> tuple[object, int]:
        layers = list[int]()
        a, b = Source(model, device="cpu"), Source(model, device="cpu", plant=plant)  # a planted side runs whole
        result = session.bisect(a, b, PROMPT, emit=lambda e: layers.append(e.layer) if isinstance(e, Reached) else None)
        return result.ladder, len(layers)

    resumed, few = ladder()
    monkeypatch.setattr(Arch, "can_resume", property(lambda arch: False))
    whole, many = ladder()
    assert resumed == whole and few < many


def test_a_bug_before_the_layers_and_one_after_them_have_no_entry_layer(model: Path):
    for plant in ("shift@final_norm", "negate@logits"):
        result = bisect(model, plant)
        assert result.ladder is not None and result.ladder.entry is None, plant
    rungs = {r.place: r.recovered for r in bisect(model, "shift@final_norm").ladder.rungs}
    assert rungs[None, "final_norm"] == pytest.approx(1.0)


def test_a_clean_pair_needs_no_ladder(model: Path):
    result = bisect(model, None)
    assert result.comparison.verdict == "AGREE" and result.ladder is None and result.write_reproducer is None


def test_b_can_be_the_wrong_side(tmp_path: Path, model: Path):
    result = session.bisect(Source(model), Source(model, plant="eps@1.attn_norm"), PROMPT)
    assert (result.comparison.side, result.comparison.first) == ("B", (1, "attn_norm"))


@pytest.mark.parametrize("plant", [
    "scale@1.qkv", "shift@1.q_rope", "no-scale@1.attn_mix", "transpose@2.attn_out", "negate@2.attn_resid",
    "eps@2.ffn_norm", "drop-block@3.ffn_gate", "gelu@3.ffn_silu", "swap@3.ffn_swigl", "overflow@3.ffn_out",
    "no-residual@4.output", "norm-plus-one@final_norm", "nan@logits", "rope-offset@0.k_rope",
])
def test_the_reproducer_fails_and_passes_once_mended(tmp_path: Path, model: Path, plant: str):
    result = bisect(model, plant)
    assert result.write_reproducer is not None, plant
    case = runpy.run_path(str(result.write_reproducer(tmp_path / "case") / "test_case.py"))
    with pytest.raises(AssertionError, match="NMSE"):
        case["test_the_stage_is_what_float64_makes_of_its_inputs"]()
    case["CASE"]["found"] = case["expected"]().astype(np.float32).astype(np.float64)
    case["test_the_stage_is_what_float64_makes_of_its_inputs"]()


def test_the_reproducer_needs_nothing_of_this_project(tmp_path: Path, model: Path):
    folder = bisect(model, "gelu@3.ffn_silu").write_reproducer(tmp_path / "case")
    test = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), str(folder)]
    run = subprocess.run(test, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1 and "3.ffn_silu: NMSE" in run.stdout, run.stdout
    lines = (folder / "test_case.py").read_text().splitlines()
    assert not any(line.startswith(("import core", "from core")) for line in lines)


def test_force_replaces_a_bisection_whose_reproducer_was_run_and_keeps_what_else_is_there(tmp_path: Path, model: Path):
    result, out = bisect(model, "gelu@3.ffn_silu"), tmp_path / "found"

    def export(force: bool = True) -> Path:
        return session.export(result, out, force=force)

    export(force=False)
    for name in ("__pycache__", ".pytest_cache"):
        (out / "reproducer" / name).mkdir()
    export()
    assert not (out / "reproducer" / "__pycache__").exists()
    for place, says in (("reproducer/fix.py", "in reproducer: it holds fix.py"), ("b/notes.txt", "in b: it holds"),
                        ("notes.txt", "it holds notes.txt"), ("c/notes.txt", "it holds the folder c")):
        (out / place).parent.mkdir(exist_ok=True)
        (out / place).write_text("mine")
        with pytest.raises(UsageError, match=says):
            export()
        assert (out / place).read_text() == "mine"
        (out / place).unlink()
    (out / "c").rmdir()
    export()


def test_an_interrupted_ladder_goes_on_where_it_stopped(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    whole = bisect(model, "scale@3.ffn_out")
    halvings: list[str] = []

    def emit(event: Event) -> None:
        if isinstance(event, Phase) and event.text.startswith("halving"):
            halvings.append(event.text)

    with pytest.raises(Cancelled):
        bisect(model, "scale@3.ffn_out", emit=emit, cancelled=lambda: len(halvings) >= 2)
    saved = list(tmp_path.rglob("*.jsonl"))
    assert len(saved) == 1 and len(saved[0].read_text().splitlines()) >= 2
    poisoned = [json.dumps([json.loads(line)[0], 0.125]) for line in saved[0].read_text().splitlines()[:1]]
    saved[0].write_text("\n".join(poisoned) + "\n")
    again = bisect(model, "scale@3.ffn_out")
    assert again.ladder.rungs[0].kl == 0.125, "the saved rung was measured anew"
    assert whole.ladder.rungs[0].kl != 0.125 and not list(tmp_path.rglob("*.jsonl"))


def test_a_bundle_cannot_be_bisected(tmp_path: Path, model: Path):
    traced = session.trace(Source(model), PROMPT)
    session.export(traced, tmp_path / "b")
    with pytest.raises(UsageError, match="bundle"):
        session.bisect(Source(tmp_path / "b"), Source(model), PROMPT)
