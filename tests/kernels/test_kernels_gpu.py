"""The Triton kernels against float64 and their definitions: interpreted on the CPU here, on a GPU under -m gpu."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from core.formats.open_model import open_model
from core.kernels.gpu.planes import LAYOUTS, to_planes
from core.model import matmul, ops
from core.model.gpu_weights import Resident
from core.model.graph_decode import is_capturable
from core.model.layers import Rope
from core.model.matmul import Ask
from core.quant import activations
from core.quant.dequantize import decode_weight, embedding_rows
from core.quant.types import GPU as GPU_KERNELS
from core.quant.types import QUANTS, tensor_bytes
from core.quant.weight import Weight
from core.system.cancel import never
from core.trace import taps
from core.trace.events import no_emit
from core.trace.run import Side, _decode, continue_greedily, open_side, run_traced
from core.trace.stats import PEAKS, ROW, TokenStats
from tests.support.random_weights import FLOAT32_NMSE, random_weight, random_x
from tests.support.small_models import IDS, write_model

pytest.importorskip("triton")
from core.kernels.gpu import layer as gpu_layer
from core.kernels.gpu import products as gpu_products
from core.kernels.gpu import statistics as gpu_statistics
from core.kernels.gpu.products import Tiling, is_one_token, multiply_planes, split

GPU = pytest.mark.gpu
HERE = "cuda:0" if torch.cuda.is_available() else "cpu"
FEW = [(5, 512, 1), (18, 256, 7), (9, 300, 1), (9, 96, 20)]  # rows, cols, tokens
MANY = [(1, 256, 1), (33, 256, 2), (37, 1792, 3), (512, 3584, 7), (3584, 1536, 8), (130, 8960, 16),
        (515, 2048, 17), (3584, 18944, 32), (257, 3584, 128), (1030, 768, 512), (152064, 1536, 1),
        (18944, 3584, 1), (3584, 18944, 1)]
LARGE = 1 << 24  # weights: making and decoding them takes seconds
NOW = ("F16", "Q8_0", "Q4_0", "Q6_K")  # one of each kind of block: no others' padding by default
LATER = ("Q4_1", "Q5_0", "Q5_1", "Q2_K", "IQ4_NL", "MXFP4", "NVFP4")  # what is no matter of the type, by -m slow
DROWNED = 20  # times the NMSE of a plain float32 product, as for the kernels of the CPU
CLOSE = {"rtol": 2e-6, "atol": 2e-6}  # float32 operations whose sums stand in another order
EXACT = {"rtol": 1e-12, "atol": 1e-14}  # float64 sums in another order


@pytest.fixture(autouse=True)
def patched_once(monkeypatch):
    """Patch Triton's language once a launch; its interpreter does at each call of a function, half of its time."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if not gpu_products.INTERPRETED or not hasattr(interpreter, "_patch_lang"):
        return
    patch, launch, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()

    def once(fn):
        if id(fn.__globals__) in patched:
            return SimpleNamespace(restore=lambda: None)
        patched.add(id(fn.__globals__))
        return patch(fn)

    def launched(self, *args, **kwargs):
        patched.clear()
        return launch(self, *args, **kwargs)

    monkeypatch.setattr(interpreter, "_patch_lang", once)
    monkeypatch.setattr(interpreter.GridExecutor, "__call__", launched)


def fits(quant: str, cols: int) -> bool:
    return cols % QUANTS[quant].block == 0 or quant.endswith("_K")


def product(weight: Weight, x: torch.Tensor, how: Tiling | None = None) -> torch.Tensor:
    on = to_planes(weight, torch.device(HERE))
    return multiply_planes(on, split(x.to(HERE), is_one_token(weight.quant, x)), how).cpu()


def nmse(got: torch.Tensor, want: torch.Tensor) -> float:
    return float(((got - want) ** 2).sum() / (want**2).sum())


@pytest.mark.parametrize(("rows", "cols", "tokens", "quant"), [
    *(pytest.param(*shape, quant, marks=pytest.mark.slow if quant not in NOW and shape in FEW[2:] else ())
      for shape in FEW for quant in LAYOUTS),
    *(pytest.param(*shape, quant, marks=GPU) for shape in MANY for quant in LAYOUTS)])
def test_a_product_is_float64_s_within_float32_rounding(rows, cols, tokens, quant):
    if not fits(quant, cols):
        pytest.skip(f"{quant} has no rows of {cols}")
    if rows * cols > LARGE and quant not in ("Q4_K", "Q6_K"):
        pytest.skip("large shapes are for the types of large files")
    weight, x = random_weight(quant, rows, cols), random_x(tokens, cols)
    decoded = decode_weight(weight, HERE).double()
    want = (x.to(HERE).double() @ decoded.T).cpu()
    error, plain = nmse(product(weight, x), want), nmse((x.to(HERE) @ decoded.float().T).cpu(), want)
    # weights of one sign leave a sum that cancels, for a plain float32 product too
    assert error < max(FLOAT32_NMSE, DROWNED * plain), f"{quant} {rows} x {cols}, {tokens} tokens: NMSE {error:.1e}"


@pytest.mark.parametrize("quant", [pytest.param(q, marks=pytest.mark.slow if q in LATER else ()) for q in LAYOUTS])
@pytest.mark.parametrize(("rows", "cols", "tokens"), [(7, 512, 1), (5, 256, 18)])
def test_bf16_rounds_the_decoded_weights_and_sums_in_float32(quant, rows, cols, tokens):
    weight, x = random_weight(quant, rows, cols), random_x(tokens, cols).bfloat16()
    want = x.double() @ decode_weight(weight).bfloat16().double().T
    error = nmse(product(weight, x), want)
    assert error < FLOAT32_NMSE, f"{quant}: NMSE {error:.1e}"


@pytest.mark.parametrize("tokens", [1, 7])
def test_a_massive_channel_does_not_drown_the_others(tokens):
    weight, x = random_weight("Q4_K", 9, 512), random_x(tokens, 512)
    x[:, 300] = 1e4
    want = x.double() @ decode_weight(weight).double().T
    ours, plain = nmse(product(weight, x), want), nmse(x @ decode_weight(weight).T, want)
    assert ours <= max(DROWNED * plain, FLOAT32_NMSE), f"NMSE {ours:.1e}, of a plain float32 product {plain:.1e}"


def test_more_tokens_than_a_program_takes():
    weight, x = random_weight("Q5_K", 3, 256), random_x(70, 256)
    error = nmse(product(weight, x), x.double() @ decode_weight(weight).double().T)
    assert error < FLOAT32_NMSE, f"NMSE {error:.1e}"


def test_the_columns_of_a_tile_may_be_shared_out():
    weight, x = random_weight("Q6_K", 6, 768), random_x(5, 768)
    want = x.double() @ decode_weight(weight).double().T
    for splits in (2, 3):
        error = nmse(product(weight, x, Tiling(16, 16, 1, splits=splits)), want)
        assert error < FLOAT32_NMSE, f"{splits} splits: NMSE {error:.1e}"


@pytest.mark.parametrize("tokens", [1, 3])
def test_a_bad_scale_shows_in_its_row_and_a_bad_activation_in_its_token_only(tokens):
    weight, x = random_weight("Q4_K", 5, 512), random_x(tokens, 512)
    weight.data.reshape(5, -1)[2, :2] = np.array([0x7E00], "<u2").view(np.uint8)  # NaN
    assert torch.isfinite(product(weight, x)).all(0).tolist() == [True, True, False, True, True]
    clean, last = random_weight("Q4_K", 5, 512), tokens - 1
    for bad in (float("nan"), float("inf"), float("-inf")):
        x[last, 77] = bad
        finite = torch.isfinite(product(clean, x)).all(1).tolist()
        assert finite == [t != last for t in range(tokens)], bad


@pytest.mark.parametrize("quant", LAYOUTS)
def test_rows_decode_from_planes_bit_for_bit(quant):
    cols = 512 if QUANTS[quant].block > 32 else 96
    rng = np.random.default_rng(1)
    raw = rng.integers(0, 256, tensor_bytes(QUANTS[quant], (9, cols)), dtype=np.uint8)
    weight = Weight("w", quant, (9, cols), raw)  # any bytes: NaN, Inf and subnormal scales among them
    ids = [3, 0, 8, 8]
    got = gpu_layer.decode_planes(to_planes(weight, torch.device(HERE)), torch.tensor(ids, device=HERE)).cpu()
    want = embedding_rows(weight, ids)
    assert torch.equal(torch.nan_to_num(got, nan=7.0), torch.nan_to_num(want, nan=7.0))


def test_padded_rows_end_at_cols():
    weight = random_weight("Q4_K", 3, 300)
    got = gpu_layer.decode_planes(to_planes(weight, torch.device(HERE)), torch.tensor([2, 1], device=HERE)).cpu()
    assert torch.equal(got, embedding_rows(weight, [2, 1]))


def test_rms_norm_is_that_of_ops():
    x, weight = random_x(21, 96).view(7, 3, 96).to(HERE), random_x(1, 96)[0].to(HERE)
    torch.testing.assert_close(gpu_layer.rms_norm(x, weight, 1e-6), ops.rms_norm(x, weight, 1e-6), **CLOSE)


@pytest.mark.parametrize("pairing", ["halves", "adjacent"])
@pytest.mark.parametrize("dim", [64, 32])
def test_rotate_is_that_of_ops_on_a_slice(pairing, dim):
    x = random_x(5, 500).to(HERE)[:, 100:100 + 3 * 64].view(5, 3, 64)
    cos, sin = (t.float().to(HERE) for t in ops.rope_angles(Rope(1e4, dim, pairing), 3, 5, None))
    torch.testing.assert_close(gpu_layer.rotate(x, cos, sin, pairing), ops.rotate(x, cos, sin, pairing), **CLOSE)


@pytest.mark.parametrize(("tokens", "positions"), [(1, 1), (7, 7), (3, 90), (1, 130)])
def test_attention_is_float64_s_and_ignores_room_that_is_not_used(tokens, positions):
    q = random_x(tokens * 6, 64).view(tokens, 6, 64).to(HERE)
    k, v = (random_x(positions * 2, 64, seed).view(positions, 2, 64).to(HERE) for seed in (2, 3))
    want = ops.attend(q.double(), k.double(), v.double())
    got = gpu_layer.attend_few(q, k, v)
    assert nmse(got, want) < FLOAT32_NMSE
    room = torch.full((positions + 70, 2, 64), float("nan"), device=HERE)
    keys, values = room.clone(), room.clone()
    keys[:positions], values[:positions] = k, v
    position = torch.tensor([positions - tokens], device=HERE)
    assert torch.equal(gpu_layer.attend_few(q, keys, values, position), got)


@pytest.mark.parametrize("at_once", [gpu_statistics.CANDIDATES, 16])
def test_statistics_of_many_tensors_in_one_launch_are_those_of_each(at_once, monkeypatch):
    monkeypatch.setattr(gpu_statistics, "CANDIDATES", at_once)  # of 32 here: in one piece, or in two
    wide = random_x(4, 4500)
    wide[0, 7] = wide[0, 4000] = float("nan")
    wide[1, 3], wide[1, 3000], wide[2], wide[3] = float("inf"), float("nan"), 0.0, float("nan")
    wide[2, 9], wide[2, 12] = -5.0, 5.0  # a tie: the lowest channel
    tensors = [wide, random_x(4, 64) * 300, torch.zeros(4, 2049)]
    measured = gpu_statistics.launch_statistics([x.to(HERE) for x in tensors]).cpu().numpy()
    table, peaks = gpu_statistics.read_statistics(measured, 3, ROW, PEAKS)
    for i, x in enumerate(tensors):
        stats = TokenStats(x.shape[1], 0, table, i, peaks)
        for name, want in taps._moments(x).items():
            np.testing.assert_allclose(stats.rows[name], want, **EXACT, err_msg=name)
        assert list(stats.top) == taps._top_channels(x)


@pytest.fixture(scope="module", params=["Q8_0", pytest.param("Q4_K", marks=GPU), pytest.param("F16", marks=GPU)])
def sides(request, tmp_path_factory) -> tuple[Side, Side]:
    """The same model on the plain path and on the kernels."""
    size = {"d_model": 256, "d_ff": 512} if request.param == "Q4_K" else {"n_head": 2, "n_kv_head": 1}
    n_layer = 1 if gpu_products.INTERPRETED else 2
    path = write_model(tmp_path_factory.mktemp("gpu") / "m.gguf", request.param, n_layer=n_layer, **size)
    plain = open_side(open_model(path), "cpu")
    device = torch.device(HERE)
    return plain, replace(plain, model=replace(plain.model, device=device, resident=Resident(device)))


IDS_HERE = IDS[:3] if gpu_products.INTERPRETED else IDS


@pytest.fixture
def few_programs(monkeypatch):
    """Large programs, where each is interpreted: a whole forward has thousands of the usual ones."""
    if gpu_products.INTERPRETED:
        monkeypatch.setattr(gpu_products, "tiling", lambda rows, n_group, tokens: Tiling(128, 16, 1))


def test_a_watched_run_is_the_plain_path_s_and_the_witness_has_its_bits(sides, few_programs):
    plain, ours = sides
    want, got = {}, {}
    told = []
    cells_a, logits_a, _ = run_traced(plain, IDS_HERE, witness=False, layers=None, keep=want, emit=no_emit,
                                      cancelled=never)
    cells_b, logits_b, same = run_traced(ours, IDS_HERE, witness=True, layers=None, keep=got,
                                         emit=lambda event: told.append(event.place), cancelled=never)
    assert same is True
    assert list(cells_a) == list(cells_b) == told
    torch.testing.assert_close(logits_b.cpu(), logits_a, **CLOSE)
    for place, value in want.items():
        torch.testing.assert_close(got[place], value, **CLOSE, msg=str(place))
        a, b = cells_a[place], cells_b[place]
        np.testing.assert_allclose(b.rows["mean"], a.rows["mean"], rtol=1e-5, atol=1e-6)
        assert [p[:2] for p in a.top] == [p[:2] for p in b.top], place
        assert (a.factors is None) == (b.factors is None)


def test_decoding_with_room_gives_the_tokens_of_the_growing_cache_and_of_the_plain_path(sides, few_programs):
    plain, ours = sides
    n_token = 3 if gpu_products.INTERPRETED else 24  # on a GPU all but the first two from a captured graph
    tokens = [continue_greedily(side, IDS_HERE, n_token, (), lambda i: None, never) for side in (plain, ours)]
    assert tokens[0] == tokens[1]
    assert HERE == "cpu" or tokens[1] == list(islice(_decode(ours, IDS_HERE, never), n_token))


def test_a_step_that_must_bring_a_weight_is_not_captured(sides, monkeypatch):
    model = sides[1].model
    on_gpu = replace(model, device=torch.device("cuda:0"), resident=Resident(model.device))
    assert is_capturable(on_gpu) and not is_capturable(sides[0].model)
    monkeypatch.setattr(on_gpu.resident, "is_whole", False)  # the memory did not hold them all
    assert not is_capturable(on_gpu)
    more = Weight("w", "TQ2_0", (1, 256), np.zeros(66, np.uint8))
    other = replace(model.file, weights={**model.file.weights, "w": more})
    assert not is_capturable(replace(on_gpu, file=other, resident=Resident(model.device)))


def test_bf16_and_q8_go_through_the_kernels(sides):
    plain, ours = sides
    for compute in ("bf16", "q8"):
        weight = plain.model.file.weight("blk.0.ffn_up.weight")
        x = random_x(2, weight.shape[1])
        want = matmul.multiply(weight, [Ask(x, compute)], lambda: None)[0]
        got = matmul.multiply(weight, [Ask(x.to(HERE), compute)], lambda: None, ours.model.resident)[0]
        far = float((got.cpu() - want).norm() / want.norm())
        assert far < 2 * activations.COMPUTES["bf16"].unit, f"{compute}: {far:.1e}"
    assert weight.name in ours.model.resident._planes


def test_a_float64_lane_goes_without_the_kernels(sides):
    _, ours = sides
    weight = ours.model.file.weight("blk.0.ffn_up.weight")
    x = random_x(2, weight.shape[1]).double()
    got = matmul.multiply(weight, [Ask(x.to(HERE), "f32")], lambda: None, ours.model.resident)[0]
    assert got.dtype == torch.float64 and nmse(got.cpu(), x @ decode_weight(weight).double().T) < EXACT["rtol"]


def test_every_type_that_the_table_gives_to_the_gpu_has_planes_and_no_other():
    assert set(LAYOUTS) == {name for name, quant in QUANTS.items() if GPU_KERNELS in quant.kernels}
    assert {name for name, layout in LAYOUTS.items() if layout.numbers is None} == {
        name for name in LAYOUTS if QUANTS[name].is_plain}
