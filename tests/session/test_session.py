"""The session does what it says and refuses what it must, before any work: open, encode, trace, compare, check."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from core import session
from core.audit.file_pair import is_same_key
from core.formats.model_file import LazyArray
from core.model.arch import read_arch
from core.model.stages import GRID_STAGES, USUAL, place_order
from core.proof.verdict import Bisection
from core.session import pair, prepare
from core.system import gpus
from core.system.cancel import never
from core.system.errors import Cancelled, DeviceError, FileError, NotComparableError, UsageError
from core.system.gpus import Gpu
from core.system.progress import Phase
from core.text.tokenizer import open_tokenizer
from core.trace.events import CellMeasured, Event, Start, TokenGenerated, no_emit
from core.trace.measures import SideName
from core.trace.record import Token
from core.trace.request import RunOptions
from tests.support.small_models import IDS, write_model
from tests.support.traces import trace_of

PROMPT = session.Prompt(tokens=IDS)
TOKENS = "tokenizer.ggml.tokens"


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("session")
    return write_model(folder / "m.gguf", tokenizer="bpe", keys={"qwen2.context_length": 32})


@pytest.fixture(scope="module")
def source(path) -> session.Source:
    return session.Source(path, device="cpu")


@pytest.fixture(scope="module")
def traced(source):
    return session.trace(source, PROMPT)


def test_files_of_a_pair_are_opened_once_and_one_tokenizer_encodes_once(path, tmp_path, monkeypatch):
    other = write_model(tmp_path / "b.gguf", tokenizer="bpe", seed=5, keys={"qwen2.context_length": 32})
    calls = []
    for home, name in ((prepare, "open_model"), (pair, "encode_while_loading")):
        real = getattr(home, name)
        monkeypatch.setattr(home, name, lambda *a, real=real, name=name: (calls.append(name), real(*a))[1])
    a, b = (session.Source(p, device="cpu") for p in (path, other))
    opened = pair.open_both(a, b)
    assert pair.compare_files(*opened, no_emit) and is_same_key(opened[0].file, opened[1].file, TOKENS)
    traces = pair.open_pair(a, b, opened, session.Prompt("hello"), no_emit)[2:]
    assert calls == ["open_model", "open_model", "encode_while_loading"] and traces[0].tokens == traces[1].tokens
    shorter = replace(opened[1].file, keys=opened[1].file.keys | {TOKENS: LazyArray("STRING", 1, lambda: ["x"])})
    assert not is_same_key(opened[0].file, shorter, TOKENS)


def test_a_trace_has_every_stage_of_every_layer_and_says_how_it_was_taken(traced):
    whole = {(None, s.name) for s in USUAL if s.whole}
    assert set(traced.cells) == whole | {(i, s.name) for i in range(3) for s in USUAL if not s.whole}
    assert traced.observed_equals_unobserved is True and traced.planted is None and len(traced.top) == 5
    facts = traced.facts
    assert (facts.engine, facts.arch, facts.definition) == ("apr-tui", "qwen2", "sample")
    assert (facts.n_layer, facts.d_model, facts.n_vocab) == (3, 64, traced.origin["widths"]["V"])
    assert (facts.compute, facts.device, facts.dtype) == ("f32", "cpu", "float32") and facts.threads and facts.kernel
    assert traced.tokens[0] == Token(IDS[0], "\x03")


def test_events_come_in_the_order_of_computation(source):
    events: list[Event] = []
    session.trace(source, PROMPT, emit=events.append)
    kinds = [type(e) for e in events]
    assert kinds[0] is Start and events[0].n_layer == 3 and [t.id for t in events[0].tokens] == list(IDS)
    places = [e.place for e in events if isinstance(e, CellMeasured)]
    assert places == sorted(places, key=place_order) and len(places) == 3 * 14 + 3
    assert kinds.index(Phase) < kinds.index(CellMeasured)


@pytest.fixture
def opened(monkeypatch):
    """The names of the files whose architecture was read and whose tokenizer was opened, in this process."""
    from core.trace import run

    found = []

    def watched(name, real):
        return lambda file: (found.append((name, file.path.name)), real(file))[1]

    for real in (read_arch, open_tokenizer):
        for module in (prepare, run):
            monkeypatch.setattr(module, real.__name__, watched(real.__name__, real))
    return found


def test_a_run_reads_a_files_architecture_once_and_opens_its_tokenizer_once(source, path, tmp_path, opened):
    once = [("read_arch", "m.gguf"), ("open_tokenizer", "m.gguf")]
    for ask in (lambda: session.trace(source, session.Prompt("hello"), RunOptions(generate=2)),
                lambda: session.check(source, PROMPT), lambda: session.compare(source, source, PROMPT)):
        opened.clear()
        ask()
        assert opened == once
    other = session.Source(tmp_path / "other.gguf", device="cpu")
    other.path.write_bytes(path.read_bytes())
    opened.clear()
    session.compare(source, other, PROMPT)
    assert sorted(opened) == sorted([*once, ("read_arch", "other.gguf"), ("open_tokenizer", "other.gguf")])


def test_what_was_found_is_written_by_its_type(source, traced, tmp_path):
    check, pair = session.check(source, PROMPT), session.compare(source, source, PROMPT, RunOptions(scope="last"))
    files = {name: {p.name for p in session.export(found, tmp_path / name, command="typed").iterdir()}
             for name, found in (("trace", traced), ("check", check), ("pair", pair), ("cause", Bisection(pair)))}
    assert "stats.csv" in files["trace"] and "local.csv" in files["check"]
    assert files["pair"] == files["cause"] >= {"a", "b", "cells.csv", "verdict.json"}
    assert '"ladder"' in (tmp_path / "cause" / "verdict.json").read_text() and (
        '"ladder"' not in (tmp_path / "pair" / "verdict.json").read_text())


def test_generated_tokens_are_told_one_by_one_and_joined(source):
    events: list[Event] = []
    result = session.trace(source, PROMPT, RunOptions(generate=3), emit=events.append)
    said = [e.text for e in events if isinstance(e, TokenGenerated)]
    assert 1 <= len(said) <= 3 and result.generated is not None
    assert session.trace(source, PROMPT).generated is None


def test_generation_stops_where_the_context_ends(source):
    events: list[Event] = []
    session.trace(source, session.Prompt(tokens=(5,) * 31), RunOptions(generate=9), emit=events.append)
    assert sum(isinstance(e, TokenGenerated) for e in events) <= 1


def test_a_plant_is_told_of_and_moves_the_logits(source, traced):
    planted = session.trace(replace(source, plant="scale@1.ffn_out"), PROMPT)
    assert planted.planted == "scale@1.ffn_out" and planted.top != traced.top
    assert planted.observed_equals_unobserved is True, "the witness has the same bug"


def test_only_the_layers_asked_for_are_watched(source):
    cells = session.trace(source, PROMPT, RunOptions(layers=(1, 2), witness=False)).cells
    assert {layer for layer, _ in cells} == {None, 1}


@pytest.mark.parametrize("layers", [(0, 4), (3, 4), (2, 2), (-1, 2)])
def test_layers_that_are_not_there_are_refused(layers, source):
    with pytest.raises(UsageError, match=r"0 <= A < B <= 3"):
        session.trace(source, PROMPT, RunOptions(layers=layers))


@pytest.mark.parametrize(("prompt", "says"), [
    (session.Prompt(tokens=(1, 999)), "token 999 is outside the vocabulary"),
    (session.Prompt(tokens=(1, -1)), "token -1 is outside"), (session.Prompt(tokens=()), "empty"),
    (session.Prompt(text=""), "empty"), (session.Prompt(tokens=(1,) * 33), "context of 32"),
    (session.Prompt(text="a" * 33), "context of 32")])
def test_a_prompt_that_cannot_be_fed_is_refused(prompt, says, path):
    with pytest.raises(UsageError, match=says):
        prepare.encode(prepare.open_once(path), prompt)


def test_a_file_without_a_tokenizer_takes_token_ids_and_refuses_text(tmp_path):
    model = prepare.open_once(write_model(tmp_path / "bare.gguf"))
    assert [t.id for t in prepare.encode(model, PROMPT)] == list(IDS)
    with pytest.raises(FileError, match="--tokens"):
        prepare.encode(model, session.Prompt())


def test_where_one_side_has_no_tokenizer_it_takes_the_others_tokens(path, tmp_path):
    keys = ("model", "pre", "tokens", "merges", "token_type", "bos_token_id", "eos_token_id", "add_bos_token")
    gone = {f"tokenizer.ggml.{k}": None for k in keys} | {"tokenizer.chat_template": None}
    bare = write_model(tmp_path / "bare.gguf", tokenizer="bpe", keys=gone)
    a, b = (session.Source(p, device="cpu") for p in (bare, path))
    result = session.compare(a, b, session.Prompt("hello"))
    assert result.verdict == "AGREE" and result.a.tokens == result.b.tokens


@pytest.mark.parametrize(("more", "error", "says"), [
    ({"compute": "fp4"}, UsageError, "f32, q8, bf16"), ({"threads": 0}, UsageError, "threads"),
    ({"device": "gpu"}, UsageError, "not a device"), ({"device": "cuda:99"}, UsageError, "not a device"),
    ({"device": "cpu\n"}, UsageError, "not a device"), ({"device": "cuda:15"}, DeviceError, "--device cpu"),
    ({"plant": "scale@9.qkv"}, UsageError, "layers 0 to 2")])
def test_settings_that_cannot_be_are_refused(more, error, says, source):
    with pytest.raises(error, match=says):
        session.trace(replace(source, **more), PROMPT)


def test_auto_takes_the_cpu_and_says_why_where_there_is_no_gpu(monkeypatch, source):
    monkeypatch.setattr(gpus, "find_gpus", lambda: ((), "no CUDA driver"))
    result = session.trace(replace(source, device="auto"), PROMPT, RunOptions(witness=False))
    assert (result.facts.device, result.origin["device_reason"]) == ("cpu", "no CUDA driver")


def test_auto_takes_the_cpu_where_a_gpu_is_there_and_torch_cannot_use_it(monkeypatch, source):
    import torch

    monkeypatch.setattr(gpus, "find_gpus", lambda: ((Gpu(0, "Some GPU", 1),), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = session.trace(replace(source, device="auto"), PROMPT, RunOptions(witness=False))
    assert result.facts.device == "cpu" and "Some GPU" in result.origin["device_reason"]
    with pytest.raises(DeviceError, match="CUDA"):
        session.trace(replace(source, device="cuda:0"), PROMPT)


def test_a_gpu_that_takes_no_work_is_named_and_auto_goes_on_without_it(monkeypatch, source):
    import torch

    def busy(*size, device=None, **more):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nand more lines")

    monkeypatch.setattr(gpus, "find_gpus", lambda: ((Gpu(0, "Some GPU", 1),), ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros", busy)
        with pytest.raises(DeviceError, match=r"busy or unavailable.*Use --device cpu") as caught:
            session.trace(replace(source, device="cuda:0"), PROMPT)
        assert caught.value.code == 6
        result = session.trace(replace(source, device="auto"), PROMPT, RunOptions(witness=False))
    assert result.facts.device == "cpu" and "busy or unavailable" in result.origin["device_reason"]


@pytest.mark.parametrize(("error", "said"), [
    ("OutOfMemoryError", "out of memory"), ("AcceleratorError", "the device failed: CUDA error: unspecified launch")])
def test_a_device_that_fails_while_it_runs_ends_with_its_own_exit_code(error, said):
    import torch

    from core.model.lockstep import ForwardRun, run_lockstep

    def steps():
        raise getattr(torch, error)("CUDA error: unspecified launch failure")
        yield

    with pytest.raises(DeviceError, match=said) as caught:
        run_lockstep([ForwardRun(steps())])
    assert caught.value.code == 6


def test_a_cancelled_trace_raises_and_a_cancelled_comparison_too(source):
    for n_call in (0, 3, 20):
        calls = iter([False] * n_call + [True] * 10_000)
        with pytest.raises(Cancelled):
            session.trace(source, PROMPT, cancelled=lambda c=calls: next(c))
        calls = iter([False] * n_call + [True] * 10_000)
        with pytest.raises(Cancelled):
            session.compare(source, source, PROMPT, cancelled=lambda c=calls: next(c))


def test_a_comparison_tells_of_both_sides(source):
    events: list[Event] = []
    session.compare(source, replace(source, threads=1), PROMPT, emit=events.append)
    wanted = {(i, s) for i in range(3) for s in GRID_STAGES}
    for side in SideName:
        assert {e.place for e in events if isinstance(e, CellMeasured) and e.side is side} >= wanted


def test_a_check_tells_of_its_cells_and_names_a_planted_place(source):
    events: list[Event] = []
    assert session.check(source, PROMPT, emit=events.append).verdict == "PASS"
    assert sum(isinstance(e, CellMeasured) for e in events) == 3 * 14 + 3
    result = session.check(replace(source, plant="negate@2.attn_out"), PROMPT)
    assert (result.verdict, result.first, result.trace.planted) == ("FAIL", (2, "attn_out"), "negate@2.attn_out")


def test_a_check_of_a_bundle_without_values_has_nothing_to_stand_on(traced, path, tmp_path):
    out = session.export(traced, tmp_path / "b", command="test")
    with pytest.raises(NotComparableError, match="--values"):
        session.check(session.Source(out), None, model=path)


def test_a_bundle_opens_as_the_trace_that_was_exported(traced, tmp_path):
    out = session.export(traced, tmp_path / "b", command="test")
    again = session.trace(session.Source(out), session.Prompt())
    assert session.is_bundle(out) and again.tokens == traced.tokens and set(again.cells) == set(traced.cells)
    assert all(again.cells[p].at("all") == traced.cells[p].at("all") for p in traced.cells)
    with pytest.raises(UsageError, match="--force"):
        session.export(traced, out, command="test")


def test_the_sibling_of_a_file_is_the_one_of_the_other_format(tmp_path):
    for name in ("m.gguf", "m.apr", "lone.gguf", "note.txt"):
        (tmp_path / name).touch()
    assert session.sibling(tmp_path / "m.gguf") == tmp_path / "m.apr"
    assert session.sibling(tmp_path / "m.apr") == tmp_path / "m.gguf"
    assert session.sibling(tmp_path / "lone.gguf") is None and session.sibling(tmp_path / "note.txt") is None


def test_the_weights_behind_a_stage_are_named_with_type_and_shape(path):
    model = session.open_model(path)
    assert session.weights_behind(model, 1, "ffn_out") == [("blk.1.ffn_down.weight", "F32", (64, 128))]
    assert [n for n, _, _ in session.weights_behind(model, 0, "qkv")] == [
        f"blk.0.attn_{p}.{kind}" for p in "qkv" for kind in ("weight", "bias")]
    assert session.weights_behind(model, 0, "ffn_silu") == []


def test_the_default_output_folder_depends_on_the_input_and_not_on_the_run():
    a, b = trace_of({}), trace_of({}, origin={"seed": 7, "torch": "other"})
    assert session.default_out(a) == session.default_out(b)
    assert session.default_out(a) != session.default_out(trace_of({}, n_token=6))
    assert str(session.default_out(a)).startswith("evidence/tiny-")


def test_the_same_input_gives_the_same_trace(source, traced):
    again = session.trace(source, PROMPT, emit=no_emit, cancelled=never)
    assert again.top == traced.top and all(again.cells[p].at("all") == traced.cells[p].at("all") for p in traced.cells)


def in_a_fresh_process(code: str) -> subprocess.CompletedProcess[str]:
    begin = ("from pathlib import Path; from core import session; from core.session import prepare\n"
             "from core.trace.request import Prompt, Source\n"
             "from core.trace.events import no_emit\n")
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False,
                          cwd=Path(__file__).parents[2])


def test_a_prompt_that_is_encoded_while_torch_loads_gets_the_same_tokens(path):
    code = (f"file = prepare.open_once(Path({str(path)!r})); text = Prompt('What is\\n2+2? caf\\u00e9')\n"
            "beside, (device, _) = prepare.encode_while_loading(file, text, lambda: prepare.load_torch('cpu', "
            "no_emit))\n"
            "import sys; assert 'torch' in sys.modules\n"
            "print(beside == prepare.encode(file, text), len(beside) > 3, device)")
    done = in_a_fresh_process(code)
    assert done.stdout == "True True cpu\n", done.stderr


def test_what_is_wrong_with_a_prompt_is_said_though_it_is_encoded_elsewhere(path):
    long = in_a_fresh_process(f"session.trace(Source(Path({str(path)!r}), device='cpu'), Prompt('2 + 2 ' * 40))")
    assert "has a context of 32" in long.stderr, long.stderr
    no_words = write_model(path.with_name("n.gguf"))
    silent = in_a_fresh_process(f"session.trace(Source(Path({str(no_words)!r}), device='cpu'), Prompt('hello'))")
    assert "has no usable tokenizer" in silent.stderr and silent.stderr.count("Traceback") == 1, silent.stderr


def test_a_device_that_is_not_there_is_told_before_torch_is_loaded(path):
    done = in_a_fresh_process(
        f"import sys\ntry: session.trace(Source(Path({str(path)!r}), device='cuda:15'), Prompt())\n"
        "except Exception as error: print(type(error).__name__, 'torch' in sys.modules)")
    assert done.stdout == "DeviceError False\n", done.stderr


def test_what_kind_of_folder_it_is_is_said_without_torch(tmp_path):
    script = ("import sys; from pathlib import Path; from core import session; p = Path(sys.argv[1]); "
              "print(session.is_cost(p), session.is_judged(p), session.is_bundle(p), 'torch' in sys.modules)")
    for name in ("manifest.json", "kl.json"):
        (tmp_path / name).write_text("{}")
    ran = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["True", "False", "True", "False"]
