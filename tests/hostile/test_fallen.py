"""Mutants that once ended in a traceback, each as small as it can be written: a sentence now."""

import hashlib
import json

import numpy as np
import pytest

from core.bundle.costs import read_cost
from core.proof.contract_gates import contract_gates
from core.sources.imports.open_trace import import_trace
from core.system.errors import FileError
from core.train.log import rewind
from tests.fuzz.readers import READERS
from tests.fuzz.runner import fuzz


def test_an_npy_of_a_type_that_is_none(tmp_path):
    np.save(tmp_path / "0.attn_norm.npy", np.ones((2, 8), np.float32))
    data = (tmp_path / "0.attn_norm.npy").read_bytes()
    (tmp_path / "0.attn_norm.npy").write_bytes(data.replace(b"<f4", b"<b4"))
    with pytest.raises(FileError, match="no header of one array"):
        import_trace(tmp_path / "0.attn_norm.npy")


@pytest.mark.parametrize("name, was, now, said", [
    ("check judged.json", "ffn_swigl", "ffn_x", "ffn_x"),      # a stage that is none
    ("debugger tree", "[1, 2, 8]", "[1, 2 8]", "a shape")])   # a shape without its comma
def test_a_word_that_cannot_be_is_named(name, was, now, said, tmp_path):
    reader = READERS[name]
    path = reader.make(tmp_path)
    path.write_text(path.read_text().replace(was, now))
    with pytest.raises(FileError, match=said):
        reader.read(path)


def test_a_saved_cost_that_is_no_utf_8(tmp_path):
    (tmp_path / "report.txt").write_bytes(b"\xff")
    (tmp_path / "manifest.json").write_text(json.dumps({"sha256": {"report.txt": hashlib.sha256(b"\xff").hexdigest()}}))
    with pytest.raises(FileError, match="not UTF-8"):
        read_cost(tmp_path, as_json=False)


def test_a_log_with_a_number_beyond_a_float_is_not_rewritten(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"step": 0, "train_loss": 1e999}\n')
    with pytest.raises(FileError, match="beyond every float"):
        rewind(tmp_path, 1)


def test_a_contract_of_lists_in_lists():
    with pytest.raises(FileError, match="inside one another"):
        contract_gates("a: " + "[" * 100 + "]" * 100, "c", [])


@pytest.mark.parametrize("name, index", [
    ("original model.safetensors", 312),  # all of a tensor but a row has changed
    ("bundle tokens.csv", 269),           # a deviation whose square is beyond every float
    ("bundle manifest.json", 4741),       # 1e999
    ("cost damage.json", 2610)])          # half a surrogate pair
def test_a_mutant_that_fell_ends_in_a_sentence(name, index, tmp_path):
    tally = fuzz(name, range(index, index + 1), 0, tmp_path)
    assert not tally.failed, tally.examples
