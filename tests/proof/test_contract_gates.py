"""The gates of the published contracts: what each says of a trace and of a pair, and that no data is never a PASS."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from core import session
from core.proof.contract_gates import GATES, contract_gates, gate_rows, judge_gates
from core.system.errors import FileError
from core.system.json_text import to_json
from core.trace.record import CaptureContract, Trace
from core.trace.request import Prompt, Source
from core.trace.stats import ScopeStats, Stats
from tests.support.small_models import IDS, write_model

UNKNOWN = CaptureContract(None, None, None, None, None, None)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory):
    model = write_model(tmp_path_factory.mktemp("gates") / "m.gguf")
    return session.compare(Source(model), Source(model), Prompt(tokens=IDS))


def verdicts(gates) -> dict[str, str]:
    return {g.id: g.verdict for g in gates}


def grid(std, n_layer: int = 28) -> Trace:
    stages = ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl", "ffn_out")
    cells = {(i, s): ScopeStats({"all": Stats(std=std(i, s))}) for i in range(n_layer) for s in stages}
    return Trace("table", UNKNOWN, (), cells)


def test_a_clean_pair_passes_what_it_measured(pair):
    found = verdicts(judge_gates(pair.a, pair))
    assert found == {
        "FFN-GGUF-001": "PASS", "FFN-GGUF-002": "PASS", "FFN-GGUF-003": "PASS", "FFN-GGUF-004": "NOT_MEASURED",
        "SUB-FFN-001": "NOT_MEASURED", "SUB-FFN-005": "PASS", "COUNT-PARITY": "PASS", "BAND": "SHOWN",
    }


def test_a_contracts_gate_is_written_with_four_keys_and_a_plain_word(pair):
    row = json.loads(to_json(gate_rows(judge_gates(pair.a, pair))))[1]
    assert row == {"id": "FFN-GGUF-002", "rule": "traced equals untraced, tolerance 0", "verdict": "PASS",
                   "measured": "logits have the same bits"}


def test_an_empty_trace_passes_nothing():
    assert "PASS" not in verdicts(judge_gates(Trace("nothing", UNKNOWN, (), {}))).values()


def test_a_run_that_watching_changed_fails(pair):
    changed = replace(pair.a, observed_equals_unobserved=False)
    assert verdicts(judge_gates(changed, replace(pair, a=changed)))["FFN-GGUF-002"] == "FAIL"


def test_a_bug_fails_the_question_and_names_what_to_fix(tmp_path: Path):
    model = write_model(tmp_path / "m.gguf")
    bug = session.compare(Source(model, plant="scale@1.ffn_out"), Source(model), Prompt(tokens=IDS))
    found = {g.id: g for g in judge_gates(bug.a, bug)}
    assert found["FFN-GGUF-003"].verdict == "FAIL"
    assert found["FFN-GGUF-004"].verdict == "PASS" and "1.ffn_out, side A" in found["FFN-GGUF-004"].measured


def test_one_loud_slot_at_layer_3_passes_and_two_fail():
    one = grid(lambda i, s: 3.5 if (i, s) == (3, "ffn_swigl") else 1.0)
    two = grid(lambda i, s: 3.5 if i == 3 and s in ("ffn_swigl", "ffn_out") else 1.0)
    assert verdicts(judge_gates(one))["SUB-FFN-001"] == "PASS"
    assert verdicts(judge_gates(two))["SUB-FFN-001"] == "FAIL"
    assert verdicts(judge_gates(grid(lambda i, s: None)))["SUB-FFN-001"] == "NOT_MEASURED"


def test_the_published_rule_is_quoted_with_what_misleads(pair):
    measured = next(g.measured for g in judge_gates(pair.a, pair) if g.id == "FFN-GGUF-003")
    assert "would have said" in measured or "nothing to compare" in measured


def test_a_contract_takes_known_gates_and_measures_nothing_else(pair):
    text = "falsification_tests:\n- {id: FALSIFY-FFN-GGUF-002, rule: a}\n- {id: FALSIFY-FFN-GGUF-010, rule: b}\n"
    found = contract_gates(text, "c.yaml", judge_gates(pair.a, pair))
    assert [(g.id, g.verdict) for g in found] == [
        ("FALSIFY-FFN-GGUF-002", "PASS"), ("FALSIFY-FFN-GGUF-010", "NOT_MEASURED")]


@pytest.mark.parametrize("text", [
    "", "[1, 2]", "falsification_tests: 3", "falsification_tests: [{rule: x}]", "a: [", "\x00",
    "falsification_tests: 2001-13-45", "a: " + "9" * 5000, "[" * 3000])
def test_a_contract_of_another_form_is_refused(text: str):
    with pytest.raises(FileError):
        contract_gates(text, "c.yaml", [])


def test_every_gate_has_a_rule():
    assert all(rule for rule, _ in GATES.values())
