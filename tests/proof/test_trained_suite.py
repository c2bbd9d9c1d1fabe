"""The trained-weights suite: its surgery and its judge on a small model, and a sample of it where a trained one lies.

The trained model is the file that APR_TUI_TRAINED names, or smollm2.gguf in this program's cache folder.
"""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import numpy as np
import pytest
from gguf import GGMLQuantizationType as T

from tests.support.small_models import write_model
from tests.trained import surgery as cut
from tests.trained.cases import Case, first_place
from tests.trained.quantisers import K_QUANTS, decode, encode, other_rounding_q4_1
from tests.trained_suite import Seen, cases_of, judge, kinds_of, run_suite, shortfalls, table

# relative error of plain rounding on normal weights: what the layout allows, and half more
ROUNDING = {T.Q8_0: 0.0054, T.Q6_K: 0.019, T.Q5_K: 0.039, T.Q5_1: 0.038, T.Q4_K: 0.079, T.Q4_1: 0.078, T.Q4_0: 0.087,
            T.Q3_K: 0.16, T.Q2_K: 0.33}
FAULT = Case("fault", "zeroed row", "blk.1.ffn_up.weight", lambda model: None, (1, "ffn_up"), ("blk.1.ffn_up.weight",))
UNREACHED = Case("fault", "key", "rope", lambda model: None, (0, "q_rope"), ("rope.freq_base",), reached=False)
REFUSED = Case("fault", "MLP bias", "bias", lambda model: None, (0, "ffn_up"), ("ffn_up.bias",), refused=True)
CLEAN = Case("clean", "the same file", "prompt 0")


def small(folder: Path) -> Path:
    """A llama of random weights that holds what the suite's prompts and surgery need: 10,240 tokens, Q4_1."""
    return write_model(folder / "small.gguf", "Q4_1", arch="llama", tied=True, d_model=128, d_ff=256, n_vocab=10240)


def trained() -> Path | None:
    """The trained model, where this machine has it."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr-tui" / "smollm2.gguf"
    said = os.environ.get("APR_TUI_TRAINED")
    path = Path(said) if said else cache
    return path if path.is_file() else None


@pytest.mark.parametrize("kind", ROUNDING, ids=lambda kind: kind.name)
def test_a_quantiser_of_the_suite_leaves_its_types_rounding_and_no_more(kind):
    x = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    left = np.linalg.norm(decode(encode(x, kind), kind, x.shape) - x) / np.linalg.norm(x)
    assert 0.8 * ROUNDING[kind] < left < 1.1 * ROUNDING[kind], (kind.name, left)
    assert set(K_QUANTS) <= set(ROUNDING)


def test_another_rounding_of_a_type_is_other_bytes_and_no_worse():
    x = np.random.default_rng(0).standard_normal((16, 1024)).astype(np.float32)
    plain, other = encode(x, T.Q4_1), other_rounding_q4_1(x, 0.95)
    errors = [np.linalg.norm(decode(b, T.Q4_1, x.shape) - x) / np.linalg.norm(x) for b in (plain, other)]
    assert not np.array_equal(plain, other) and errors[1] < 1.1 * errors[0], errors


def test_a_copy_that_nothing_changed_is_the_file_byte_for_byte(tmp_path):
    path = small(tmp_path)
    assert cut.read_copy(path).write(tmp_path / "again.gguf").read_bytes() == path.read_bytes()


def test_an_edit_changes_its_own_tensor_of_its_own_copy_and_nothing_else(tmp_path):
    model = cut.read_copy(small(tmp_path))
    name, changed = "blk.1.ffn_up.weight", model.copy()
    before = model.values(name)
    cut.zero_rows(changed, name, [5])
    assert not changed.values(name)[5].any() and np.array_equal(model.values(name), before)
    assert [n for n in model.tensors if model.tensors[n] is not changed.tensors[n]] == [name]
    cut.scale_blocks(changed, name, 8.0)
    assert np.array_equal(np.delete(changed.values(name), 5, 0), np.delete(8 * before, 5, 0))


def test_the_rope_order_and_its_inverse_are_one_another():
    order = cut.rope_order(12, 6)
    assert list(order) == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert list(order[np.argsort(order)]) == list(range(12))


def test_the_first_of_several_tensors_is_the_one_computed_first():
    assert first_place(["output_norm.weight", "blk.2.ffn_up.weight", "blk.2.attn_k.weight"]) == (2, "qkv")
    assert first_place(["output_norm.weight", "output.weight"]) == (None, "final_norm")


@pytest.mark.parametrize(("case", "seen", "right"), [
    (FAULT, Seen("H2", (1, "ffn_up"), "blk.1.ffn_up.weight"), True),
    (FAULT, Seen("H2", (1, "ffn_gate"), "blk.1.ffn_up.weight"), False),
    (FAULT, Seen("H1", None, "blk.1.ffn_up.weight"), False),
    (FAULT, Seen("H3", (1, "ffn_up"), "blk.1.ffn_up.weight"), False),
    (FAULT, Seen("exit 3", None, "blk.1.ffn_up.weight"), False),
    (FAULT, Seen("crash KeyError", None, "blk.1.ffn_up.weight"), False),
    (FAULT, Seen("INCONCLUSIVE", None, "blk.1.ffn_up.weight", 0.1), False),
    (FAULT, Seen("INCONCLUSIVE", None, "blk.1.ffn_up.weight", 1e-7), True),
    (UNREACHED, Seen("INCONCLUSIVE", None, "rope.freq_base is 1 in A"), True),
    (UNREACHED, Seen("INCONCLUSIVE", None, "near the floor"), False),
    (UNREACHED, Seen("AGREE", None, ""), False),
    (REFUSED, Seen("exit 3", None, "blk.0.ffn_up.bias is read by nothing"), True),
    (REFUSED, Seen("exit 3", None, "unreadable"), False),
    (CLEAN, Seen("H2", (0, "qkv"), ""), False),
    (CLEAN, Seen("INCONCLUSIVE", None, ""), False),
    (CLEAN, Seen("H1", None, ""), True),
])
def test_what_is_right_for_a_case_is_judged_by_verdict_place_and_name(case, seen, right):
    outcome = judge(case, "f32", seen)
    assert outcome.right is right, str(outcome)


def test_the_suite_holds_the_faults_the_harmless_files_and_the_pairs_that_it_promises(tmp_path):
    model = cut.read_copy(small(tmp_path))
    cases = cases_of(model, "f32", None, None, 0)
    n = {group: sum(c.group == group for c in cases) for group in {c.group for c in cases}}
    assert n["harmless"] >= 40 and n["clean"] >= 30, n  # more on a trained model: its K-quant rows fit
    made = {kind: next(iter(make(model, Random(0))), None) for kind, make in kinds_of("f32").items()}
    assert {k for k, some in made.items() if not some} <= {f"under {t.name}" for t in K_QUANTS}, made


def test_a_sample_takes_each_kind_in_turn_and_is_the_same_each_time(tmp_path):
    model = cut.read_copy(small(tmp_path))
    drawn = [cases_of(model, "f32", None, 30, 0) for _ in range(2)]
    assert [c.label for c in drawn[0]] == [c.label for c in drawn[1]]
    assert len({c.kind for c in drawn[0]}) == 30


def test_faults_of_a_small_model_are_found_and_told_in_the_table(tmp_path):
    outcomes = list(run_suite(small(tmp_path), ["f32"], only="fault: zeroed row", sample=3))
    assert [o.right for o in outcomes] == [True] * 3 and not shortfalls(outcomes), list(map(str, outcomes))
    assert any("ALL" in line and "H2 3" in line for line in table(outcomes))


def test_a_fault_that_nobody_names_is_a_bar_that_is_not_reached():
    found, missed = judge(FAULT, "q8", Seen("H2", (1, "ffn_up"), "")), judge(FAULT, "q8", Seen("H1", None, ""))
    assert not shortfalls([found])
    assert shortfalls([found, missed]) == [
        "q8 fault: 50.0% right, 98% needed", "q8 fault: 1 are AGREE or H1 or H3; none may be"]


@pytest.mark.slow
@pytest.mark.skipif(trained() is None, reason="no trained model: name one by APR_TUI_TRAINED")
@pytest.mark.parametrize("compute", ["f32", "q8", "bf16"])
def test_a_sample_of_a_trained_models_faults_is_found_and_its_twins_are_not_accused(compute):
    path = trained()
    assert path is not None
    outcomes = list(run_suite(path, [compute], sample=40, n_layer=4))
    wrong = [str(o) for o in outcomes if not o.right and o.case.group != "requantised low"]
    assert not wrong, "\n".join(wrong)
