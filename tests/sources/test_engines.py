"""Other engines as sources: a fake child in every way that engines fail, and the real ones where they are installed."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import sys
import tempfile
import time
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apr_tui.cli.doctor import doctor_facts
from core import session
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.model.stages import GRID_STAGES, USUAL, Place
from core.proof.capture import missing_before
from core.sources.engines import process
from core.sources.engines.process import Answer, Ask, run_engine, write_answer
from core.sources.engines.trace import folder_tokens
from core.system.cancel import never
from core.system.errors import Cancelled, FileError, NotComparableError, UsageError
from core.trace import run
from core.trace.engines import ENGINES
from core.trace.events import no_emit
from core.trace.request import Prompt, RunOptions, Source, parse_source
from tests.support.small_models import IDS, write_model

FAKE = Path(__file__).parents[1] / "support" / "fake_engine.py"
PROMPT = Prompt(tokens=IDS)
DETAILS = tuple(s.name for s in USUAL if s.detail)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A small model of Q8_0 weights, whose products --compute q8 rounds."""
    return write_model(tmp_path_factory.mktemp("engines") / "m.gguf", "Q8_0", n_vocab=128)


def stage_values(path: Path, plant: str | None = None, compute: str = "f32", ids=IDS) -> dict[Place, torch.Tensor]:
    """Every stage's values as our own forward makes them, with a bug planted."""
    kept: dict[Place, torch.Tensor] = {}
    side = run.open_side(open_model(path), "cpu", compute, plant=plant)
    run.run_traced(side, list(ids), witness=False, layers=None, keep=kept, emit=no_emit, cancelled=never)
    return kept


@pytest.fixture
def fake(tmp_path, monkeypatch, model):
    """Return a function that makes llama.cpp a fake engine with these values, answers and manner of failing."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (tmp_path / "prepared").mkdir()

    def become(values=None, mode: str = "answer", **answers) -> Source:
        answer = Answer(**{"engine": "fake 1", "compute": "f32", "dtype": "float32", "arch": "qwen2", "n_layer": 3,
                           "d_model": 64, "n_vocab": 128, "tokens": IDS, "threads": 1, "device": "cpu",
                           "kernel": "by hand", "same_logits": True} | answers)
        write_answer(tmp_path / "prepared", answer, stage_values(model) if values is None else values)
        command = (sys.executable, "-S", str(FAKE), mode, str(tmp_path / "prepared"))
        monkeypatch.setitem(ENGINES, "llama.cpp", replace(ENGINES["llama.cpp"], packages=("json",), command=command))
        return Source(model, scheme="llama.cpp")

    yield become
    assert list((tmp_path / "temporary").iterdir()) == [], "temporary files were left"


def without(values: dict[Place, torch.Tensor], *stages: str) -> dict[Place, torch.Tensor]:
    return {place: value for place, value in values.items() if place[1] not in stages}


def child_is_gone(folder: Path) -> bool:
    pid = int((folder / "child.pid").read_text())
    for _ in range(40):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_an_engine_that_computes_alike_agrees(fake, model):
    for a, b in ((Source(model), fake()), (fake(), Source(model)), (fake(), fake())):
        result = session.compare(a, b, PROMPT)
        assert result.verdict in ("AGREE", "H1"), result.reasons
        assert {stage for _, stage in result.cells} >= set(GRID_STAGES)


def test_an_engines_trace_has_its_cells_facts_and_candidates(fake, model):
    ours = session.trace(Source(model), PROMPT)
    traced = session.trace(fake(), PROMPT)
    assert set(traced.cells) == set(ours.cells) and traced.values is None
    for place, cell in traced.cells.items():
        assert cell.at("all").std == pytest.approx(ours.cells[place].at("all").std, rel=1e-12)
    facts = traced.facts
    assert (facts.engine, facts.compute, facts.definition, facts.n_layer) == ("fake 1", "f32", "sample", 3)
    assert [t.id for t in traced.tokens] == list(IDS) and traced.observed_equals_unobserved is True
    assert [c.id for c in traced.top] == [c.id for c in ours.top]


@pytest.mark.parametrize("planted", ["shift@1.ffn_swigl", "scale@2.qkv", "stale@0.output", "negate@1.attn_out"])
def test_a_wrong_engine_is_named_with_its_stage(fake, model, planted):
    wrong = stage_values(model, planted)
    layer, stage = planted.partition("@")[2].split(".")
    result = session.compare(Source(model), fake(wrong), PROMPT)
    assert (result.verdict, result.first, result.side) == ("H2", (int(layer), stage), "B"), result.reasons
    assert session.compare(fake(wrong), Source(model), PROMPT).side == "A"
    errors = session.check(fake(wrong), PROMPT).errors
    assert [p for p, e in errors.items() if e.is_bad] == [(int(layer), stage)], "what follows is right by its inputs"
    assert max(e.floor for e in errors.values()) < 1e-11, "every floor is that of one stage"


@pytest.mark.parametrize(("planted", "end", "span"), [
    ("rope-offset@1.q_rope", (1, "attn_out"), "q_rope, k_rope, attn_mix"),
    ("no-mask@2.attn_mix", (2, "attn_out"), "q_rope, k_rope, attn_mix"),
    ("twice-residual@0.attn_resid", (0, "ffn_norm"), "attn_resid"),
    ("gelu@1.ffn_silu", (1, "ffn_swigl"), "ffn_silu"),
])
def test_where_detail_stages_are_absent_the_span_is_judged_in_one_piece(fake, model, planted, end, span):
    result = session.check(fake(without(stage_values(model, planted), *DETAILS, "ffn_silu")), PROMPT)
    assert result.first == end, result.reasons
    assert f"judged in one piece with {span}, which the source lacks" in result.reasons
    clean = session.check(fake(without(stage_values(model), *DETAILS, "ffn_silu")), PROMPT)
    assert clean.verdict == "PASS" and len(clean.errors) == 3 * 9 + 3


def test_the_missing_stages_before_a_place_are_those_that_it_is_recomputed_through(model):
    values, arch = without(stage_values(model), *DETAILS, "ffn_silu"), read_arch(open_model(model))
    assert missing_before(values, (1, "attn_out"), arch) == ("q_rope", "k_rope", "attn_mix")
    assert missing_before(values, (1, "qkv"), arch) == ()
    assert missing_before(without(values, "output"), (1, "attn_norm"), arch) == ("0.attn_resid", "0.output")


def test_an_engine_with_the_residual_stream_only_is_judged_layer_by_layer(fake, model):
    kept = {(None, "embedding"), (None, "logits"), *((i, "output") for i in range(3))}
    for planted, first in ((None, None), ("scale@1.ffn_gate", (1, "output"))):
        values = {p: v for p, v in stage_values(model, planted).items() if p in kept}
        assert session.check(fake(values), PROMPT).first == first


def test_a_capture_that_lacks_stages_never_passes(fake, model):
    values = {p: v for p, v in stage_values(model).items() if p[0] in (None, 0) and p[1] != "logits"}
    with pytest.raises(NotComparableError, match="lacks the logits"):
        session.check(fake(values), PROMPT)
    result = session.compare(Source(model), fake(values), PROMPT)
    assert result.verdict == "INCONCLUSIVE", result.reasons


def test_a_declared_rounding_of_activations_explains_the_difference(fake, model):
    rounded = stage_values(model, compute="q8")
    result = session.compare(Source(model), fake(rounded, compute="q8"), PROMPT)
    assert (result.verdict, result.first) == ("H3", (0, "qkv")), result.reasons
    assert "compute f32 in A, q8 in B" in result.reasons[0]
    assert "gives the values of B within the floor" in result.reasons[1]
    assert session.check(fake(rounded, compute="q8"), PROMPT).verdict == "PASS"


def test_a_rounding_that_is_not_declared_is_a_bug(fake, model):
    result = session.compare(Source(model), fake(stage_values(model, compute="q8")), PROMPT)
    assert (result.verdict, result.first, result.side) == ("H2", (0, "qkv"), "B")


def test_a_bug_does_not_hide_behind_a_declared_choice(fake, model):
    wrong = stage_values(model, "shift@2.ffn_up", compute="q8")
    result = session.compare(Source(model), fake(wrong, compute="q8"), PROMPT)
    assert (result.verdict, result.first, result.side) == ("H2", (2, "ffn_up"), "B"), result.reasons


def test_a_nan_of_an_engine_is_a_finding_with_its_place(fake, model):
    values = stage_values(model)
    values[1, "ffn_up"] = values[1, "ffn_up"].clone()
    values[1, "ffn_up"][4, 9] = float("nan")
    error = session.check(fake(values), PROMPT).errors[1, "ffn_up"]
    assert (error.token, error.channel, error.is_bad) == (4, 9, True)
    result = session.compare(Source(model), fake(values), PROMPT)
    assert (result.verdict, result.first, result.side, result.token) == ("H2", (1, "ffn_up"), "B", 4)
    findings = session.hints(session.trace(fake(values), PROMPT), "all")
    assert [(f.kind, f.place, f.token, f.channel) for f in findings[:1]] == [("nan", (1, "ffn_up"), 4, 9)]


def test_an_engine_that_ran_other_tokens_is_compared_with_nothing(fake, model):
    other = (*IDS[:-1], 1)
    result = session.compare(Source(model), fake(tokens=other), PROMPT)
    assert result.verdict == "NOT_COMPARABLE" and result.reasons[0].startswith("tokens:")
    with pytest.raises(NotComparableError, match="other tokens than it was asked to"):
        session.check(fake(tokens=other), PROMPT)


def test_values_of_another_shape_or_depth_are_compared_with_nothing(fake, model):
    values = stage_values(model)
    narrow = values | {(1, "ffn_up"): values[1, "ffn_up"][:, :-1]}
    deep = values | {(3, "output"): values[2, "output"]}
    for changed, word in ((narrow, r"1.ffn_up has shape \[7, 127\]"), (deep, "3.output")):
        result = session.compare(Source(model), fake(changed), PROMPT)
        assert result.verdict == "NOT_COMPARABLE", result.reasons
        with pytest.raises(NotComparableError, match=word):
            session.check(fake(changed), PROMPT)
    assert session.compare(Source(model), fake(n_layer=4), PROMPT).verdict == "NOT_COMPARABLE"


def test_logits_and_last_layer_of_the_last_token_only_are_judged_at_that_token(fake, model):
    values = stage_values(model, "scale@final_norm")
    assert len(values[None, "logits"]) == 1
    values[None, "final_norm"] = values[None, "final_norm"][-1:]
    result = session.check(fake(values), PROMPT)
    assert (result.first, result.errors[None, "final_norm"].token) == ((None, "final_norm"), len(IDS) - 1)


@pytest.mark.parametrize(("mode", "words"), [
    ("crash", r"crashed \(SIGSEGV\).*42: tensor \\x1b\[31mtoo"), ("fail", r"exit code 5.*out of luck"),
    ("no-answer", "without a readable"), ("half", "without a readable"), ("strange", "without a readable"),
    ("no-values", "without values"), ("cut-values", "not a readable safetensors file"),
])
def test_an_engine_that_fails_is_an_error_with_its_last_words(fake, mode, words):
    with pytest.raises(FileError, match=words):
        session.trace(fake(mode=mode), PROMPT)


@pytest.mark.parametrize("changed", [{"compute": None}, {"n_layer": "3"}, {"tokens": ()}, {"threads": 1.5}])
def test_an_answer_that_leaves_its_contract_out_is_refused(fake, changed):
    with pytest.raises(FileError, match=next(iter(changed))):
        session.trace(fake(**changed), PROMPT)


def test_an_engine_that_hangs_is_ended(fake, tmp_path):
    fake(mode="hang")
    with pytest.raises(FileError, match=r"hangs: no sign of life for 0.4 seconds.*loading"):
        run_engine("llama.cpp", Ask("m", IDS), emit=no_emit, cancelled=never, patience=0.4)
    assert child_is_gone(tmp_path / "prepared")


def test_a_cancelled_engine_is_ended_and_tells_of_its_progress_before(fake, tmp_path):
    fake(mode="hang")
    told: list[str] = []
    with pytest.raises(Cancelled):
        run_engine("llama.cpp", Ask("m", IDS), emit=lambda event: told.append(event.text),
                   cancelled=lambda: len(told) > 1)
    assert told == ["running llama.cpp", "llama.cpp: loading the model"]
    assert child_is_gone(tmp_path / "prepared")


def test_progress_in_any_script_is_told_line_by_line_and_whole(fake):
    fake(mode="slow")
    told: list[str] = []
    with pytest.raises(Cancelled):
        run_engine("llama.cpp", Ask("m", IDS), emit=lambda event: told.append(event.text), patience=5,
                   cancelled=lambda: len(told) > 4 or any("2" in line for line in told))
    assert told[2:] == ["llama.cpp: 模型 читается", "llama.cpp: layer 1", "llama.cpp: layer 2"]


@pytest.mark.parametrize("scheme", list(ENGINES))
def test_an_engine_that_is_not_installed_says_how_to_install_it(model, monkeypatch, scheme):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    needs = extras["optional-dependencies"][scheme.partition(".")[0]]
    with pytest.raises(UsageError, match="is not installed") as told:
        session.trace(Source(model, scheme=scheme), PROMPT)
    assert shlex.split(str(told.value).partition("Install it: ")[2]) == [sys.executable, "-m", "pip", "install", *needs]


def test_what_an_engine_cannot_do_is_refused_before_it_runs(fake, model, tmp_path):
    source = fake(mode="crash")
    with pytest.raises(UsageError, match="--plant"):
        session.trace(replace(source, plant="nan@0.qkv"), PROMPT)
    with pytest.raises(UsageError, match="--generate"):
        session.trace(source, PROMPT, RunOptions(generate=2))
    with pytest.raises(UsageError, match="runs on the CPU"):
        session.trace(replace(source, device="cuda:0"), PROMPT)
    with pytest.raises(FileError, match="no such file"):
        session.trace(replace(source, path=tmp_path / "none.gguf"), PROMPT)
    (tmp_path / "m.apr").write_bytes(b"APR2")
    with pytest.raises(FileError, match="apr-tui convert"):
        session.compare(Source(model), replace(source, path=tmp_path / "m.apr"), PROMPT)
    with pytest.raises(UsageError, match="bisect model files"):
        session.bisect(Source(model), source, PROMPT)


@pytest.mark.parametrize("text", ["{", "[1]", "\udcff", "[" * 100_000, '{"vocab_size": "many"}'])
def test_a_folder_s_config_of_another_form_is_named_or_says_no_vocabulary(tmp_path, text):
    (tmp_path / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    if text in ("[1]", '{"vocab_size": "many"}'):
        assert [t.id for t in folder_tokens(tmp_path, Prompt(tokens=(1, 10**6)))[0]] == [1, 10**6]
        with pytest.raises(UsageError, match="token -1 is outside the vocabulary"):
            folder_tokens(tmp_path, Prompt(tokens=(-1,)))
    else:
        with pytest.raises(FileError, match=r"config\.json is not a JSON document"):
            folder_tokens(tmp_path, Prompt(tokens=(1,)))


def test_an_engine_that_its_watching_disturbs_says_so(fake):
    assert session.trace(fake(same_logits=False), PROMPT).observed_equals_unobserved is False


def saved(model: Path, out: Path, *, values: bool = True, plant: str | None = None, compute: str = "f32") -> Source:
    traced = session.trace(Source(model, plant=plant, compute=compute), PROMPT, RunOptions(keep_values=values))
    session.export(traced, out)
    return Source(out)


@pytest.mark.parametrize("compute", ["f32", "q8", "bf16"])
def test_a_bundle_with_values_is_checked_against_its_file(model, tmp_path, compute):
    clean = session.check(saved(model, tmp_path / "a", compute=compute), None, model=model)
    assert clean.verdict == "PASS" and len(clean.errors) == 3 * 14 + 3, clean.reasons
    wrong = session.check(saved(model, tmp_path / "b", plant="shift@1.ffn_gate", compute=compute), None, model=model)
    assert wrong.first == (1, "ffn_gate")
    assert "every channel stands one place on" in wrong.reasons[1]


def test_a_bundle_is_checked_only_against_a_file_that_fits(model, tmp_path):
    bundle = saved(model, tmp_path / "a")
    with pytest.raises(UsageError, match="--model FILE"):
        session.check(bundle, None)
    with pytest.raises(NotComparableError, match="--values"):
        session.check(saved(model, tmp_path / "b", values=False), None, model=model)
    shallow = write_model(tmp_path / "s.gguf", "Q8_0", n_vocab=128, n_layer=2)
    with pytest.raises(NotComparableError, match=r"these values are not of s\.gguf: 2\.attn_norm"):
        session.check(bundle, None, model=shallow)
    assert session.check(bundle, None, model=model).verdict == "PASS"
    for more in ({"keys": {"general.name": "twin"}}, {"seed": 1}):  # another header, and the same with other weights
        other = write_model(tmp_path / "o.gguf", "Q8_0", n_vocab=128, **more)
        with pytest.raises(NotComparableError, match=r"made from another file than o\.gguf is now: its bytes"):
            session.check(bundle, None, model=other)


def test_a_capture_of_unknown_compute_fails_only_where_no_known_compute_explains_it(fake, model):
    bug = ("f32", "negate@1.qkv", (1, "qkv"))
    for compute, planted, first in (("q8", None, None), ("bf16", None, None), bug):
        result = session.check(fake(stage_values(model, planted, compute), compute="who knows"), PROMPT)
        assert result.first == first, result.reasons
        assert any("the compute is unknown; it was judged as" in note for note in result.trace.notes)


def test_a_bundle_beside_its_own_file_is_judged_with_its_weights(model, tmp_path):
    for compute, verdict in (("f32", "AGREE"), ("q8", "H3")):
        result = session.compare(Source(model), saved(model, tmp_path / compute, compute=compute), None)
        assert result.verdict == verdict, result.reasons
    result = session.compare(saved(model, tmp_path / "w", plant="scale@1.ffn_up"), Source(model), None)
    assert (result.verdict, result.first, result.side) == ("H2", (1, "ffn_up"), "A")


def test_what_a_child_is_asked_reaches_it_and_comes_back(tmp_path):
    ask = Ask("m.gguf", IDS, 2, (0, 2), "cpu", False)
    (tmp_path / process.ASK).write_text(json.dumps(asdict(ask)))
    assert process.read_ask(tmp_path) == ask
    assert process.stages_wanted(ask, 1) is None and process.stages_wanted(ask, 2) == ("output",)


needs_llama = pytest.mark.skipif(importlib.util.find_spec("llama_cpp") is None, reason="llama.cpp is not installed")
needs_transformers = pytest.mark.skipif(
    None in map(importlib.util.find_spec, ("transformers", "accelerate")), reason="transformers is not installed")
ARCHS = {"qwen2": {"tokenizer": "bpe"}, "qwen3": {"tokenizer": "bpe", "head_dim": 128}, "llama": {"tokenizer": "spm"}}


@needs_llama
@pytest.mark.parametrize(("arch", "quant", "verdict"), [
    ("qwen2", "Q4_K", "H3"), ("qwen3", "Q8_0", "H3"), ("llama", "F16", "H3"), ("llama", "F32", "AGREE"),
])
def test_llama_cpp_is_right_by_itself_and_our_q8_is_its_choice(tmp_path, arch, quant, verdict):
    path = write_model(tmp_path / "m.gguf", quant, arch=arch, d_model=256, d_ff=256, **ARCHS[arch])
    source = Source(path, scheme="llama.cpp", threads=1)
    checked = session.check(source, PROMPT)
    assert checked.verdict == "PASS" and checked.trace.observed_equals_unobserved, checked.reasons
    assert {s for _, s in checked.errors} == {s.name for s in USUAL} - {"ffn_silu"}
    assert max(e.declared for e in checked.errors.values()) < 2e-6, "our op on its inputs is its own, bit-near"
    result = session.compare(Source(path), source, PROMPT)
    assert result.verdict == verdict, result.reasons
    if verdict == "H3":
        near = session.compare(Source(path, compute="q8"), source, PROMPT).cells[result.first].rel_l2
        assert result.first == (0, "qkv") and 10 * near < result.measured


@needs_llama
def test_rope_angles_in_float32_are_no_difference_at_a_long_prompt(tmp_path):
    path = write_model(tmp_path / "m.gguf", "F32", arch="llama", n_layer=2, d_model=256, d_ff=256, **ARCHS["llama"])
    prompt = Prompt(tokens=tuple((37 * i + 5) % 128 for i in range(400)))
    source = Source(path, scheme="llama.cpp", threads=2)
    result = session.compare(Source(path), source, prompt)
    assert result.verdict == "AGREE", result.reasons
    assert max(c.rel_l2 for p, c in result.cells.items() if p[1] == "q_rope") > 3e-6, "they are not the same angles"
    assert session.check(source, prompt).verdict == "PASS"


@needs_llama
def test_llama_cpp_shows_only_the_layers_asked_for_and_the_residual_stream(tmp_path):
    path = write_model(tmp_path / "m.gguf", "F32", **ARCHS["qwen2"])
    traced = session.trace(Source(path, scheme="llama.cpp"), PROMPT, RunOptions(layers=(1, 2), witness=False))
    assert {layer for layer, stage in traced.cells if stage == "ffn_up"} == {1}
    assert {layer for layer, stage in traced.cells if stage == "output"} == {0, 1, 2}
    assert traced.observed_equals_unobserved is None


@needs_llama
def test_a_nan_weight_in_llama_cpp_is_a_finding(tmp_path):
    def break_one(w):
        w = w.copy()
        w[3, 5] = np.nan
        return w

    path = write_model(tmp_path / "m.gguf", "F32", changes={"blk.1.ffn_up.weight": break_one}, **ARCHS["qwen2"])
    first = session.hints(session.trace(Source(path, scheme="llama.cpp"), PROMPT), "all")[0]
    assert (first.kind, first.place, first.channel) == ("nan", (1, "ffn_up"), 3)


@needs_llama
@pytest.mark.parametrize("row", ["normal", "heavy", "ties", "tiny"])
def test_eight_bit_activations_are_those_of_ggml_bit_for_bit(row):
    import ctypes

    import llama_cpp
    from llama_cpp import llama_cpp as api

    from core.quant.activations import q8_0, q8_k

    api.llama_backend_init()
    cpu = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("*ggml-cpu.so"))))
    rng = np.random.default_rng(0)
    x = {"normal": rng.standard_normal(1 << 16), "heavy": rng.standard_cauchy(1 << 16),
         "ties": rng.integers(-127, 128, 1 << 16) / 2, "tiny": rng.standard_normal(512) * 1e-40}[row].astype(np.float32)

    def ggml(name: str, block: int, size: int) -> np.ndarray:
        out = np.zeros((x.size // block, size), np.uint8)
        function = getattr(cpu, name)
        function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
        function(x.ctypes.data, out.ctypes.data, x.size)
        head = size - block if block == 32 else 4
        scale = out[:, :head].copy().view(np.float16 if block == 32 else np.float32).astype(np.float32)
        return (out[:, head : head + block].view(np.int8).astype(np.float32) * scale).ravel()

    assert np.array_equal(q8_k(torch.from_numpy(x)).numpy(), ggml("quantize_row_q8_K", 256, 292))
    assert np.array_equal(q8_0(torch.from_numpy(x)).numpy(), ggml("quantize_row_q8_0", 32, 34))


@pytest.mark.slow
@needs_transformers
@pytest.mark.parametrize("arch", list(ARCHS))
def test_transformers_agrees_on_a_gguf_and_on_its_safetensors_folder(tmp_path, arch):
    path = write_model(tmp_path / "m.gguf", "Q8_0", arch=arch, d_model=256, d_ff=256, **ARCHS[arch])
    source = Source(path, scheme="transformers", threads=2)
    checked = session.check(source, PROMPT)
    assert checked.verdict == "PASS" and checked.trace.observed_equals_unobserved, checked.reasons
    assert {s for _, s in checked.errors} == {s.name for s in USUAL}
    result = session.compare(Source(path), source, PROMPT)
    assert result.verdict in ("AGREE", "H1") and max(c.rel_l2 for c in result.cells.values()) < 3e-6
    folder = _as_folder(path, tmp_path / "hf")
    assert session.check(replace(source, path=folder), PROMPT, model=path).verdict == "PASS"
    assert session.compare(Source(path), replace(source, path=folder), PROMPT).verdict in ("AGREE", "H1")
    other = write_model(tmp_path / "o.gguf", "Q8_0", arch=arch, d_model=256, d_ff=256, seed=1, **ARCHS[arch])
    result = session.compare(Source(other), replace(source, path=folder), PROMPT)
    assert result.verdict == "INCONCLUSIVE" and "convert the folder" in result.reasons[1]


def _as_folder(path: Path, folder: Path) -> Path:
    """The model's weights as transformers saves them."""
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    settings = {k: v for k, v in loaded.config.to_dict().items() if k != "quantization_config"}
    plain = type(loaded)(type(loaded.config)(**settings)).float()
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    return folder


def test_a_row_makes_an_engine_a_source_that_is_spelled_run_and_listed(fake, monkeypatch, model):
    fake()
    monkeypatch.setitem(ENGINES, "other", replace(ENGINES["llama.cpp"], scheme="other"))
    source = parse_source(f"other:{model}", Source(Path()))
    assert source == Source(model, scheme="other")
    assert session.trace(source, PROMPT).name == f"other:{model.name}"
    assert "other" in doctor_facts()["engines"]
    with pytest.raises(UsageError, match="other runs on the CPU here"):
        session.trace(replace(source, device="cuda"), PROMPT)


@needs_llama
def test_a_file_of_an_unknown_architecture_traces_through_llama_cpp_for_statistics_alone(tmp_path):
    path = write_model(tmp_path / "m.gguf", arch="internlm2", tokenizer="spm", bias=False)
    with pytest.raises(FileError, match=r"'internlm2', which is none of the .* audit FILE.* trace llama\.cpp:FILE"):
        session.trace(Source(path), PROMPT)
    traced = session.trace(Source(path, scheme="llama.cpp", threads=1), PROMPT, RunOptions(keep_values=True))
    assert traced.values is None and traced.facts.arch == "internlm2"
    assert {(0, "qkv"), (2, "ffn_swigl"), (2, "output")} <= set(traced.cells)
    assert "nothing is recomputed" in traced.notes[-1] and "llama.cpp:FILE" not in traced.notes[-1]
