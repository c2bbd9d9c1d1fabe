"""Readers of other tools' dumps: each shows what the run made, needs what it lacks, and survives mutants of itself."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest

from core import session
from core.bundle.grid_text import grid_text
from core.model.stages import GRID_STAGES, Place
from core.proof.judge_pair import judge_saved
from core.proof.measure_pair import CompareOptions
from core.proof.verdict import Verdict
from core.sources.imports.open_trace import import_trace
from core.system.cancel import never
from core.system.errors import AprError, FileError, UsageError
from core.system.numbers import short
from core.trace.events import no_emit
from core.trace.record import Trace
from core.trace.request import Prompt, RunOptions, Source
from tests.fuzz.mutants import mutate
from tests.support.foreign_dumps import write_imatrix, write_log, write_npz, write_rows, write_safetensors, write_tree
from tests.support.small_models import write_model

IDS = (3, 17, 5, 42)
ASK = CompareOptions("all", 10.0, no_emit, never, False)
FORMS = ("log", "npz", "safetensors", "rows", "tree", "imatrix")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, Trace]:
    """A model file, and its traced run with values."""
    model = write_model(tmp_path_factory.mktemp("readers") / "m.gguf", n_layer=2, d_model=16, n_head=2, n_kv_head=1,
                        d_ff=24)
    return model, session.trace(Source(model), Prompt(tokens=IDS), RunOptions(keep_values=True))


def written(form: str, folder: Path, values) -> Path:
    """The run as that tool writes it."""
    values = {p: np.asarray(v) for p, v in values.items()}
    match form:
        case "log":
            return write_log(folder / "log.txt", values, 8)
        case "npz":
            return write_npz(folder / "d.npz", values, IDS)
        case "safetensors":
            return write_safetensors(folder / "d.safetensors", values, IDS)
        case "rows":
            return write_rows(folder / "d.jsonl", values, IDS)
        case "tree":
            return write_tree(folder, values, IDS)
    return write_imatrix(folder / "im.gguf", values)


def opened(form: str, path: Path, model: Path | None) -> Trace:
    return import_trace(path, model=model, tokens=IDS if form == "log" else None)


def doubled(values, place: Place):
    """The values with one stage twice as large: what an engine with a bug there would show from there on."""
    return {p: np.asarray(v) * (2 if p == place else 1) for p, v in values.items()}


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_named_arrays_are_the_runs_values_and_agree_with_the_model(run, tmp_path, form):
    model, traced = run
    found = opened(form, written(form, tmp_path, traced.values), model)
    assert {p: v.tobytes() for p, v in found.values.items()} == {
        p: np.asarray(v).tobytes() for p, v in traced.values.items()}
    assert [t.id for t in found.tokens] == list(IDS) and found.facts.n_layer == 2
    session.export(found, tmp_path / "bundle")
    assert session.compare(Source(model), Source(tmp_path / "bundle"), None).verdict is Verdict.AGREE


def test_a_fault_in_named_arrays_is_named_at_its_place_by_check(run, tmp_path):
    model, traced = run
    found = opened("npz", written("npz", tmp_path, doubled(traced.values, (1, "ffn_up"))), model)
    session.export(found, tmp_path / "bundle")
    assert session.check(Source(tmp_path / "bundle"), None, model=model).first == (1, "ffn_up")


@pytest.mark.parametrize("form, place", [("log", (1, "ffn_norm")), ("rows", (0, "ffn_out")), ("tree", (1, "attn_out"))])
def test_other_statistics_are_named_at_their_place_and_equal_ones_are_not(run, tmp_path, form, place):
    model, traced = run
    clean = judge_saved(traced, opened(form, written(form, tmp_path, traced.values), model), ASK)
    assert (clean.verdict, clean.first) == (Verdict.AGREE if form == "rows" else Verdict.INCONCLUSIVE, None)
    wrong = judge_saved(traced, opened(form, written(form, tmp_path, doubled(traced.values, place)), model), ASK)
    assert (wrong.verdict, wrong.first) == (Verdict.INCONCLUSIVE, place)


def test_a_log_shows_means_of_every_stage(run, tmp_path):
    _, traced = run
    found = opened("log", written("log", tmp_path, traced.values), None)
    cells = {p: c.at("all") or c.at("last") for p, c in found.cells.items()}
    assert {s for _, s in cells} >= set(GRID_STAGES) - {"ffn_silu"}
    assert all(s.mean == pytest.approx(float(np.asarray(traced.values[p], np.float64).mean()), abs=1e-6)
               for p, s in cells.items())


def test_a_source_without_stds_shows_its_means(run, tmp_path):
    found = opened("log", written("log", tmp_path, run[1].values), None)
    text = grid_text(found, "all")
    assert "mean at scope all, 4 tokens" in text and short(found.cells[1, "ffn_out"].at("all").mean, 6) in text


def test_an_importance_matrix_shows_the_size_of_each_products_input(run, tmp_path):
    _, traced = run
    found = opened("imatrix", written("imatrix", tmp_path, traced.values), run[0])
    want = float(np.sqrt(np.square(np.asarray(traced.values[1, "ffn_swigl"], np.float64)).sum()))
    assert found.cells[1, "ffn_swigl"].at("unknown").l2 == pytest.approx(want, rel=1e-6)
    assert {p[1] for p in found.cells} == {"attn_norm", "attn_mix", "ffn_norm", "ffn_swigl"}


def test_an_importance_matrix_of_the_same_tokens_is_held_to_the_runs_sizes(run, tmp_path):
    model, traced = run
    for values, first in ((traced.values, None), (doubled(traced.values, (1, "ffn_norm")), (1, "ffn_norm"))):
        found = import_trace(written("imatrix", tmp_path, values), model=model, tokens=IDS, scope="all",
                             definition="sample")
        assert judge_saved(traced, found, ASK).first == first


@pytest.mark.parametrize("kept, first", [("f16", None), ("f32", (0, "attn_norm"))])
def test_a_log_is_held_to_the_rounding_of_its_cache(run, tmp_path, kept, first):
    model, traced = run
    near = {p: np.asarray(v) * (1 + 3e-4) for p, v in traced.values.items() if p[0] is not None}
    path = written("log", tmp_path, near)
    line = f"common_debug_cb_eval: cache_k_l0 (view) = ({kept})   SET_ROWS(Kcur-0{{8, 4, 1, 1}}, x{{4, 1, 1, 1}}}}) = "
    path.write_text(f"{line}{{8, 512, 1, 1}}\n    sum = 0.5\n{path.read_text()}")
    assert judge_saved(traced, opened("log", path, model), ASK).first == first


def test_a_log_whose_sums_are_of_the_shown_numbers_is_refused(run, tmp_path):
    def added(part):
        shown = re.findall(r"-?[0-9]+\.[0-9]{4}(?=[,. \]])", part.rpartition("sum")[0])
        return re.sub(r"sum = .*", f"sum = {sum(map(float, shown)):f}", part)

    nodes = re.split(r"(?=common_debug)", written("log", tmp_path, run[1].values).read_text())
    (tmp_path / "old.txt").write_text("".join([nodes[0], *map(added, nodes[1:])]))
    with pytest.raises(FileError, match="adds up the numbers that it shows"):
        import_trace(tmp_path / "old.txt", tokens=IDS)


def test_values_that_only_stand_elsewhere_are_seen_in_a_log_and_in_its_bundle(run, tmp_path):
    model, traced = run
    place = (1, "ffn_up")
    rolled = {p: np.roll(v, 1, -1) if p == place else v for p, v in traced.values.items()}
    found = opened("log", written("log", tmp_path, rolled), model)
    assert found.cells[place].samples[0] == (0, 0, pytest.approx(float(np.asarray(rolled[place])[0, 0]), abs=5e-5))
    assert judge_saved(traced, found, ASK).first == place
    session.export(found, tmp_path / "bundle")
    assert session.open_bundle(tmp_path / "bundle").cells == found.cells
    assert session.compare(Source(model), Source(tmp_path / "bundle"), None).first == place


def node(name: str, op: str, source: str, shape: tuple[int, ...], rows: list[str], total: float) -> str:
    """A node as the tool prints it."""
    shown = "".join(f"      [{row}],\n" for row in rows)
    return (f"common_debug_cb_eval: {name} = (f32) {op}({source}{{2, 9, 1, 1}}, y{{1, 1, 1, 1}}}}) = "
            f"{{{', '.join(map(str, shape))}}}\n    [\n     [\n{shown}     ],\n    ]\n    sum = {total}\n")


def test_a_scaled_embedding_is_the_embedding_and_heads_that_are_turned_show_no_rows(tmp_path):
    (tmp_path / "log.txt").write_text(
        node("embd", "GET_ROWS", "token_embd.weight", (2, 1, 1, 1), ["0.5, 1.0"], 1.5)
        + node("inp_scaled", "SCALE", "embd", (2, 1, 1, 1), ["5.0, 10.0"], 15.0)
        + node("attn_norm-0", "MUL", "norm-0", (2, 1, 1, 1), ["1.0, 2.0"], 3.0)
        + node("Qcur-0", "ROPE", "Qcur-0", (1, 2, 1, 1), ["1.0", "2.0"], 3.0))
    cells = import_trace(tmp_path / "log.txt", tokens=[3]).cells
    assert cells[None, "embedding"].at("all").mean == 7.5
    assert cells[None, "embedding"].samples == ((0, 0, 5.0), (0, 1, 10.0))
    assert cells[0, "attn_norm"].samples and not cells[0, "q_rope"].samples


def test_a_node_of_packed_values_has_no_sum(run, tmp_path):
    path = written("log", tmp_path, run[1].values)
    line = "common_debug_cb_eval: cache_k_l0 (view) = (q8_0)   SET_ROWS(x{8, 4, 1, 1}, y{4, 1, 1, 1}}) = {8, 512, 1, 1}"
    head, first, rest = path.read_text().partition("common_debug_cb_eval:")
    path.write_text(f"{head}{line}\n{first}{rest}")
    assert opened("log", path, run[0]).cells


def test_hidden_states_of_transformers_are_the_layers_ends(tmp_path):
    x = {f"hidden_{i}": np.full((3, 8), i + 0.5, np.float32) + np.arange(8, dtype=np.float32) for i in range(4)}
    np.savez(tmp_path / "h.npz", **x)
    found = import_trace(tmp_path / "h.npz", tokens=[1, 2, 3])
    assert set(found.values) == {(None, "embedding"), (0, "output"), (1, "output"), (None, "final_norm")}


def test_an_sglang_folder_is_read_with_its_residuals_and_its_pickles_are_refused(tmp_path):
    folder = tmp_path / "TP0_PP0_Rank0_pid7"
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = {"embed_tokens": 8, "layers.0.input_layernorm": 8, "layers.0.self_attn.qkv_proj": 16,
             "layers.0.mlp.gate_up_proj": 24, "layers.0.mlp.act_fn": 12, "layers.1.input_layernorm.0": 8,
             "layers.1.input_layernorm.1": 8}
    arrays = {f"model.{n}": rng.standard_normal((3, w), np.float32) for n, w in names.items()}
    np.savez(folder / "Pass00000.npz", **arrays)
    found = import_trace(tmp_path, tokens=[1, 2, 3])
    assert np.array_equal(found.values[0, "output"], arrays["model.layers.1.input_layernorm.1"])
    assert np.array_equal(found.values[0, "ffn_up"], arrays["model.layers.0.mlp.gate_up_proj"][:, 12:])
    assert (0, "ffn_swigl") in found.values and (0, "ffn_silu") not in found.values
    (folder / "Pass00001.pt").write_bytes(b"PK\3\4")
    with pytest.raises(FileError, match=r"Pass00001.pt is a pickle .* never opened .*save_file"):
        import_trace(tmp_path, tokens=[1, 2, 3])


def test_a_pickle_is_refused_by_name_wherever_it_hides(tmp_path):
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "m.pt").write_bytes(b"\x80\x04.")
    for name in ("a.npy", "m.pt"):
        with pytest.raises(FileError, match=rf"{name} .*never"):
            import_trace(tmp_path / name)


def test_a_model_that_the_dump_is_not_of_is_refused(run, tmp_path):
    other = write_model(tmp_path / "o.gguf", n_layer=1, d_model=16, n_head=2, n_kv_head=1, d_ff=24)
    path = written("log", tmp_path, run[1].values)
    with pytest.raises(UsageError, match=r"1\.attn_norm has a value; o.gguf has no such stage"):
        import_trace(path, tokens=IDS, model=other)


def test_a_log_that_is_cut_names_the_node_without_its_sum(run, tmp_path):
    path = written("log", tmp_path, run[1].values)
    text = path.read_text()
    path.write_text(text[:text.rindex("sum")])
    with pytest.raises(FileError, match=r"cut short: the node of line .* has no sum"):
        import_trace(path, tokens=IDS)


def test_a_tree_that_names_a_file_elsewhere_is_refused(run, tmp_path):
    path = written("tree", tmp_path, run[1].values)
    tree = json.loads(path.read_text())
    tree["children"][0]["outputs"]["value"] = "./../secret.safetensors"
    path.write_text(json.dumps(tree))
    with pytest.raises(FileError, match="is not a file beside the JSON"):
        import_trace(path)


def edited(line: str, stage: str, **numbers: float) -> str:
    """A row with other numbers where it is of layer 0's stage; the same line elsewhere."""
    row = json.loads(line)
    return json.dumps(row | numbers) if (row.get("layer"), row.get("stage")) == (0, stage) else line


@pytest.mark.parametrize("change", [
    lambda lines: lines[:-1],  # the logits
    lambda lines: [line for line in lines if '"layer": 1, "stage": "q_rope"' not in line],
    lambda lines: [edited(line, "attn_resid", std=-0) for line in lines],  # a number without decimals loosens no other
])
def test_rows_that_were_cut_or_blunted_do_not_agree(run, tmp_path, change):
    path = written("rows", tmp_path, run[1].values)
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    assert judge_saved(run[1], opened("rows", path, run[0]), ASK).verdict is Verdict.INCONCLUSIVE


def fuzz(form: str, traced: Trace, model: Path, folder: Path, n: int) -> None:
    """Import n mutants: each is refused by a sentence, or agrees only where its numbers are the good ones."""
    path = written(form, folder, traced.values)
    good, draw = path.read_bytes(), random.Random(form)
    whole = opened(form, path, model)
    for i in range(n):
        data = mutate(good, draw) if i % 3 else good[:draw.randrange(len(good))]
        if data == good:
            continue
        path.write_bytes(data)
        try:
            found = opened(form, path, model if i % 4 == 0 else None)
        except AprError as error:
            assert error.code != 70
            continue
        if i % 4 == 0 and judge_saved(traced, found, ASK).verdict is Verdict.AGREE:
            assert _is_near(whole, found), f"mutant {i} of {form} agrees"


def _is_near(a: Trace, b: Trace) -> bool:
    """Whether each statistic is as the good one's but for its last digits."""
    pairs = [(a.cells[p].at("all"), b.cells[p].at("all")) for p in a.cells if p in b.cells]
    return set(a.cells) == set(b.cells) and all(
        abs((x.std or 0) - (y.std or 0)) <= 1e-4 * (x.std or 1) for x, y in pairs if x is not None and y is not None)


@pytest.mark.parametrize("form", FORMS)
def test_mutants_of_a_dump_are_refused_by_a_sentence_or_do_not_agree(run, tmp_path, form):
    fuzz(form, run[1], run[0], tmp_path, 60)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_many_mutants_of_a_dump_are_refused_by_a_sentence_or_do_not_agree(run, tmp_path, form):
    fuzz(form, run[1], run[0], tmp_path, 1000)
