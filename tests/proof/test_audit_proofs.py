"""What an audit proves of a file shows where the file is run: a check fails by it, a trace says it in a note."""

from __future__ import annotations

import numpy as np

from core import session
from core.quant.types import QUANTS
from core.trace.request import Prompt, Source
from tests.support.small_models import IDS, write_model


def twin(tmp_path, name="blk.2.ffn_down.weight"):
    kept = {}

    def keep(x):
        return kept.setdefault("x", x)

    return write_model(tmp_path / "m.gguf", changes={"blk.0.ffn_down.weight": keep, name: lambda x: kept["x"]})


def test_a_check_fails_by_a_proof_of_a_tensor_that_the_run_reads(tmp_path):
    result = session.check(Source(twin(tmp_path)), Prompt(tokens=IDS))
    assert result.verdict == "FAIL" and result.first == (0, "ffn_out")
    assert result.reasons[0] == "blk.0.ffn_down.weight and blk.2.ffn_down.weight are the same, byte for byte"


def test_a_check_fails_by_a_scale_of_a_wrong_sign(tmp_path):
    path = write_model(tmp_path / "m.gguf", "Q8_0")
    from gguf import GGUFReader

    tensor = next(t for t in GGUFReader(path).tensors if t.name == "blk.1.ffn_up.weight")
    data = bytearray(path.read_bytes())
    data[tensor.data_offset + QUANTS["Q8_0"].block_bytes * 6 + 1] ^= 0x80
    path.write_bytes(data)
    result = session.check(Source(path), Prompt(tokens=IDS))
    assert result.first == (1, "ffn_up") and result.spot == (None, 3)
    assert "blk.1.ffn_up.weight row 3, block 0: a scale is negative" in result.reasons


def test_a_trace_notes_the_proofs_in_one_line_and_none_of_a_sound_file(tmp_path):
    notes = session.trace(Source(twin(tmp_path)), Prompt(tokens=IDS)).notes
    assert [n for n in notes if n.startswith("audit")] == [
        "audit proves: blk.0.ffn_down.weight and blk.2.ffn_down.weight are the same, byte for byte and 1 more "
        "(apr-tui audit m.gguf)"]
    sound = write_model(tmp_path / "sound.gguf", changes={"blk.1.ffn_up.weight": np.negative})
    assert not [n for n in session.trace(Source(sound), Prompt(tokens=IDS)).notes if n.startswith("audit")]
