"""The one forward gives what transformers gives, and the same whether watched, cached, chunked or threaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from core.formats.open_model import open_model
from core.model import matmul, model
from core.model.forward import forward
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.matmul import Ask
from core.model.model import Cache, Model
from core.model.stages import Place, place_text
from core.quant import activations
from core.quant.weight import Weight
from core.system.cancel import never
from core.system.errors import Cancelled
from core.text.tokenizer import open_tokenizer
from core.trace.events import no_emit
from core.trace.run import Side, continue_greedily, open_side, run_traced, same_bits, top_tokens
from core.trace.taps import no_tap
from tests.golden.make import HERE, MODELS, TOKENS, build, reference, signed_sums, stds, weights_digest
from tests.support.small_models import IDS, quantised, write_model

AGAINST_TRANSFORMERS = 1e-4  # relative: float32 on both sides, other kernels, six layers
SUMMED_OTHERWISE = 2e-5      # relative: the same float32 sums in another order, through a few layers
SHARED = Path(__file__).parents[3] / "shared"


def traced(side: Side, ids: Sequence[int], witness: bool = False) -> tuple[dict[Place, torch.Tensor], torch.Tensor]:
    kept: dict[Place, torch.Tensor] = {}
    _, logits, same = run_traced(
        side, ids, witness=witness, layers=None, keep=kept, emit=no_emit, cancelled=never)
    assert same is (True if witness else None)
    return kept, logits


def logits_of(side: Side, ids: Sequence[int], cache: Cache | None = None) -> torch.Tensor:
    return run_lockstep([side.forward_run(ids, no_tap, cache)])[0]


def relative(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got.double() - want.double()).norm() / want.double().norm())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="module")
def small(folder) -> Side:
    return open_side(open_model(write_model(folder / "small.gguf", tokenizer="bpe")), "cpu")


@pytest.mark.parametrize("name", list(MODELS))
def test_every_stage_is_that_of_transformers(name, folder):
    golden, path = np.load(HERE / f"{name}.npz"), build(name, folder)
    assert weights_digest(path) == str(golden["digest"]), "the builder writes other weights: run tests.golden.make"
    values, _ = traced(open_side(open_model(path), "cpu"), TOKENS)
    found = {place_text(place): value.numpy() for place, value in values.items()}
    assert sorted(found) == golden["stages"].tolist()
    row = 0
    for i, stage in enumerate(golden["stages"].tolist()):
        x = found[stage]
        off = np.abs(stds(x) / golden["stds"][i] - 1).max()
        assert off <= AGAINST_TRANSFORMERS, f"{stage}: std is {off:.2g} relative off"
        rows = slice(row, row + len(x))
        row += len(x)
        far = np.sqrt(((signed_sums(x) - golden["sums"][rows]) ** 2).mean(1)) / golden["sizes"][rows]
        assert far.max() <= AGAINST_TRANSFORMERS, f"{stage}: relative L2 {far.max():.2g} at token {far.argmax()}"
    assert row == len(golden["sums"])


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_every_value_is_that_of_transformers_where_it_is_installed(name, folder):
    pytest.importorskip("transformers")
    path = build(name, folder)
    values, _ = traced(open_side(open_model(path), "cpu"), TOKENS)
    wanted = reference(path, name)
    assert {place_text(p) for p in values} == set(wanted)
    for place, value in values.items():
        want = torch.from_numpy(wanted[place_text(place)])
        far = (value - want).double().norm(dim=1) / want.double().norm(dim=1)
        assert float(far.max()) <= AGAINST_TRANSFORMERS, f"{place_text(place)}: {float(far.max()):.2g}"


@pytest.mark.skipif(not (SHARED / "data" / "stories260k.gguf").exists(), reason="the shared data is not here")
def test_a_really_trained_model_goes_on_as_it_was_trained():
    file = open_model(SHARED / "data" / "stories260k.gguf")
    _, logits = traced(open_side(file, "cpu"), [1, 403, 407, 261, 378], witness=True)
    best = top_tokens(open_tokenizer(file), logits)[0]
    assert best.id == 473 and best.logit == pytest.approx(9.0512, abs=2e-4)  # by transformers 5.23 in float32


@pytest.mark.parametrize("steps", [(1,) * 7, (3, 4), (6, 1)])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_a_prompt_fed_in_pieces_through_the_cache_gives_the_logits_of_the_whole(arch, steps, folder):
    side = open_side(open_model(write_model(folder / f"{arch}-cache.gguf", arch=arch, n_kv_head=1)), "cpu")
    whole, cache, at = logits_of(side, IDS), Cache(), 0
    for n in steps:
        pieces = logits_of(side, IDS[at : at + n], cache)
        at += n
    assert cache.n_past == len(IDS)
    assert relative(pieces, whole) <= SUMMED_OTHERWISE


def test_a_norm_is_decoded_once_however_many_tokens_follow(folder, monkeypatch):
    decoded, own = list[str](), model.decode_weight
    monkeypatch.setattr(model, "decode_weight", lambda w, *a: decoded.append(w.name) or own(w, *a))
    side = open_side(open_model(write_model(folder / "once.gguf")), "cpu")
    continue_greedily(side, IDS, 4, (), lambda i: None, never)
    assert decoded and len(decoded) == len(set(decoded)), decoded


def test_the_cache_moves_what_it_holds_only_where_its_room_doubles():
    cache, k_TKH, places = Cache(), torch.arange(192.0).view(48, 2, 2), set()
    for i in range(48):
        keys, values = cache.extend(0, k_TKH[i : i + 1], -k_TKH[i : i + 1])
        places.add(keys.data_ptr())
    assert torch.equal(keys, k_TKH) and torch.equal(values, -k_TKH)
    assert len(places) <= 7, "once alone, then 4, 10, 22, 46 and 94 positions"


def test_a_continuation_is_the_likeliest_token_again_and_again(small):
    said: list[int] = []
    out = continue_greedily(small, IDS, 6, (), said.append, never)
    ids = list(IDS)
    for _ in range(6):
        ids.append(int(logits_of(small, ids).argmax()))
    assert out == said == ids[len(IDS):]


def test_a_continuation_stops_after_the_end_token(small):
    free = continue_greedily(small, IDS, 6, (), lambda i: None, never)
    end = next(i for i in free if i != free[0])
    assert continue_greedily(small, IDS, 6, (end,), lambda i: None, never) == free[: free.index(end) + 1]


def test_a_tied_head_is_the_embedding_bit_for_bit(folder):
    tied = write_model(folder / "tied.gguf", changes={"output.weight": lambda x: None})
    embedding = open_model(tied).weight("token_embd.weight")
    rows = np.frombuffer(embedding.data.tobytes(), np.float32).reshape(embedding.shape)
    untied = write_model(folder / "untied.gguf", changes={"output.weight": lambda x: rows.copy()})
    a, b = (logits_of(open_side(open_model(p), "cpu"), IDS) for p in (tied, untied))
    assert same_bits(a, b)


@pytest.mark.parametrize("compute", list(activations.COMPUTES))
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_a_watched_run_has_the_bits_of_an_unwatched_one(compute, threads, small):
    side = open_side(small.model.file, "cpu", compute, threads)
    _, logits = traced(side, IDS, witness=True)
    assert same_bits(logits, logits_of(side, IDS))


def test_thread_counts_change_rounding_only(folder):
    file = open_model(write_model(folder / "wide.gguf", d_model=256, d_ff=512))
    one, two = (logits_of(open_side(file, "cpu", "f32", n), IDS) for n in (1, 2))
    assert relative(one, two) <= SUMMED_OTHERWISE


def test_a_run_leaves_torch_with_the_threads_it_had_and_a_lane_without_a_count_keeps_them(small):
    before, seen = torch.get_num_threads(), []

    def look(layer, stage, value):
        seen.append(torch.get_num_threads())
        return value

    free = ForwardRun(forward(small.model, IDS, look), "f32", None)
    run_lockstep([free, small.forward_run(IDS, no_tap),
                  ForwardRun(forward(small.model, IDS, no_tap), "f32", before + 1)])
    assert set(seen) == {before} and torch.get_num_threads() == before


@pytest.mark.parametrize("quant", ["F32", "F16", "Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("compute", list(activations.COMPUTES))
def test_a_weight_multiplied_in_chunks_gives_the_product_of_the_whole(quant, compute, monkeypatch):
    rng = np.random.default_rng(3)
    w, x = rng.standard_normal((70, 256)).astype(np.float32), torch.from_numpy(rng.standard_normal((5, 256))).float()
    raw = w.view(np.uint8) if quant == "F32" else quantised(w, quant).view(np.uint8)
    weight = Weight("w", quant, (70, 256), raw.reshape(-1))
    whole = matmul.multiply(weight, [Ask(x, compute, plain=True)], lambda: None)[0]
    monkeypatch.setattr(matmul, "CHUNK_WEIGHTS", 256 * 9)
    calls = []
    chunked = matmul.multiply(weight, [Ask(x, compute, plain=True)], lambda: calls.append(1))[0]
    assert len(calls) == 8
    by_kernel = matmul.multiply(weight, [Ask(x, compute)], lambda: None)[0]
    assert relative(by_kernel, whole) <= SUMMED_OTHERWISE
    assert relative(chunked, whole) <= (2**-8 if compute == "bf16" else SUMMED_OTHERWISE)


def test_a_weight_is_decoded_once_for_all_runs_that_ask_for_it(small, monkeypatch):
    decoded: list[str] = []
    plain = matmul.decode_rows

    def counting(weight, *args, **more):
        decoded.append(weight.name)
        return plain(weight, *args, **more)

    monkeypatch.setattr(matmul, "decode_rows", counting)
    exact = Model(small.model.file, small.model.arch, small.model.device, torch.float64)
    runs = [small.forward_run(IDS, no_tap), ForwardRun(forward(small.model, IDS, no_tap), "q8"),
            ForwardRun(forward(exact, IDS, no_tap))]
    logits = run_lockstep(runs)
    assert len(decoded) == len(set(decoded)) == 3 * 7 + 1
    assert logits[2].dtype == torch.float64 and relative(logits[0], logits[2]) <= SUMMED_OTHERWISE


def test_eight_bit_activations_are_rounded_as_ggml_rounds_them():
    x = np.random.default_rng(0).standard_normal((3, 512)).astype(np.float32)
    x[1, :256] = 0
    x[2, 5] = -9.0
    want = np.zeros_like(x)
    for t in range(3):
        for b in range(2):
            block = x[t, 256 * b : 256 * b + 256]
            peak = block[np.abs(block).argmax()]
            if peak:
                scale = np.float32(-127) / peak
                want[t, 256 * b : 256 * b + 256] = np.minimum(127, np.rint(scale * block)) * (np.float32(1) / scale)
    assert np.array_equal(activations.q8_k(torch.from_numpy(x)).numpy(), want)
    for t in range(3):
        for b in range(16):
            block = x[t, 32 * b : 32 * b + 32]
            d = np.abs(block).max() / np.float32(127)
            q = np.rint(block * (np.float32(1) / d)) if d else block * 0
            want[t, 32 * b : 32 * b + 32] = q * np.float32(np.float16(d))
    assert np.array_equal(activations.q8_0(torch.from_numpy(x)).numpy(), want)


def test_eight_bits_and_bfloat16_are_further_from_float64_than_float32_and_near_enough(folder):
    file = open_model(write_model(folder / "q.gguf", "Q4_K", d_model=256, d_ff=256, n_layer=2))
    exact = Model(file, open_side(file, "cpu").model.arch, torch.device("cpu"), torch.float64)
    truth = run_lockstep([ForwardRun(forward(exact, IDS, no_tap))])[0]
    far = {c: relative(logits_of(open_side(file, "cpu", c), IDS), truth) for c in activations.COMPUTES}
    assert far["f32"] < 1e-6 and 1e-4 < far["q8"] < 0.05 and 1e-4 < far["bf16"] < 0.05, far


def test_a_cancelled_run_raises_and_closes_its_forward(small):
    left = []

    def steps():
        try:
            yield from forward(small.model, IDS, no_tap)
        finally:
            left.append(True)

    calls = iter([False] * 5 + [True] * 100)
    with pytest.raises(Cancelled):
        run_lockstep([ForwardRun(steps())], lambda: next(calls))
    assert left == [True]


def test_only_the_layers_asked_for_are_watched_and_the_logits_are_those_of_the_whole(small):
    cells, logits, _ = run_traced(
        small, IDS, witness=False, layers=(1, 2), keep=None, emit=no_emit, cancelled=never)
    assert {layer for layer, _ in cells} == {None, 1}
    assert same_bits(logits, logits_of(small, IDS))


def test_equal_logits_are_listed_by_the_lowest_id_and_nan_is_left_out(small):
    logits = torch.zeros(1, small.model.arch.n_vocab)
    logits[0, 9], logits[0, 4], logits[0, 7], logits[0, 1] = 2.0, 2.0, float("nan"), float("inf")
    assert [t.id for t in top_tokens(small.tokenizer, logits)] == [4, 9, 0, 2, 3]
