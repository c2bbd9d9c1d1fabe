"""A file's proofs, each by a fault planted in the bytes of a small file, and none on a sound one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from core.audit.audit_file import audit_file
from core.audit.blocks import scan_tensor
from core.audit.finding import Finding
from core.quant.types import QUANTS
from core.quant.weight import Weight
from core.system.cancel import never
from core.system.errors import Cancelled
from tests.support.small_models import quantised, write_model

HALF = {"nan": 0x7E00, "inf": 0x7C00, "minus one": 0xBC00}


def edited(path: Path, name: str, edit) -> Path:
    """Change a tensor's bytes in the file: edit is given them as uint8, to change in place."""
    from gguf import GGUFReader

    tensor = next(t for t in GGUFReader(path).tensors if t.name == name)
    data = bytearray(path.read_bytes())
    view = np.frombuffer(data, np.uint8)[tensor.data_offset:tensor.data_offset + tensor.n_bytes]
    edit(view)
    path.write_bytes(data)
    return path


def kinds(path: Path) -> list[tuple[str, str | None]]:
    return [(f.kind, f.tensor) for f in audit_file(path).proofs]


def only(path: Path) -> Finding:
    found = audit_file(path).proofs
    assert len(found) == 1, [f.sentence for f in found]
    return found[0]


def put(raw: np.ndarray, at: int, bits: int) -> None:
    raw[at:at + 2] = np.frombuffer(bits.to_bytes(2, "little"), np.uint8)


@pytest.mark.parametrize("quant", ["F32", "F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_sound_file_of_each_type_has_no_finding(tmp_path, quant):
    audit = audit_file(write_model(tmp_path / "m.gguf", quant, tokenizer="bpe"))
    assert not audit.findings and audit.exit_code == 0


@pytest.mark.parametrize("quant", ["Q4_0", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("what", ["nan", "inf"])
def test_a_scale_that_is_not_finite_is_named_with_row_and_block(tmp_path, quant, what):
    size = QUANTS[quant].block_bytes
    path = edited(write_model(tmp_path / "m.gguf", quant), "blk.1.ffn_up.weight",
                  lambda raw: put(raw, size * (2 * 5 + 1), HALF[what]))
    found = only(path)
    assert (found.kind, found.tensor, found.layer, found.row, found.block) == (
        "not_finite", "blk.1.ffn_up.weight", 1, 5, 1)


def test_a_value_that_is_not_finite_is_named_with_its_column(tmp_path):
    path = edited(write_model(tmp_path / "m.gguf"), "blk.2.attn_q.weight",
                  lambda raw: raw[4 * (64 * 3 + 7):].view("<f4").__setitem__(0, np.nan))
    found = only(path)
    assert (found.row, found.block) == (3, 7) and "row 3, column 7" in found.sentence


@pytest.mark.parametrize("quant", ["Q4_1", "Q8_0"])
def test_a_scale_of_a_sign_that_no_writer_writes_is_named(tmp_path, quant):
    size = QUANTS[quant].block_bytes
    path = edited(write_model(tmp_path / "m.gguf", quant), "blk.0.ffn_gate.weight",
                  lambda raw: put(raw, size * 4, HALF["minus one"]))
    assert ("negative_scale", "blk.0.ffn_gate.weight") in kinds(path)


def test_a_negative_scale_of_q4_0_is_no_fault(tmp_path):
    path = edited(write_model(tmp_path / "m.gguf", "Q4_0"), "blk.0.ffn_gate.weight",
                  lambda raw: raw.__setitem__(1, raw[1] ^ 0x80))
    assert not kinds(path)


def test_a_block_without_its_extreme_level_is_named_where_the_rest_keep_to_it(tmp_path):
    path = edited(write_model(tmp_path / "m.gguf", "Q8_0", d_ff=1024), "blk.1.ffn_up.weight",
                  lambda raw: raw.__setitem__(slice(34 * 8 + 2, 34 * 9), 3))
    found = only(path)
    assert (found.kind, found.tensor, found.row, found.block) == ("no_extreme", "blk.1.ffn_up.weight", 4, 0)


def test_rows_and_tensors_of_zeros_are_named(tmp_path):
    def rows(x):
        x[10:12] = 0
        return x

    for quant in ("F32", "Q4_0"):
        changes = {"blk.1.ffn_gate.weight": rows, "blk.2.attn_k.weight": np.zeros_like}
        found = audit_file(write_model(tmp_path / f"{quant}.gguf", quant, changes=changes)).proofs
        assert [(f.kind, f.tensor) for f in found] == [
            ("zeros", "blk.2.attn_k.weight"), ("zero_rows", "blk.1.ffn_gate.weight")]
        assert "rows 10 to 11 are zeros" in found[1].sentence and found[1].row == 10


def test_rows_that_gate_and_up_both_have_as_zeros_at_the_end_are_no_fault(tmp_path):
    def padded(x):
        x[-4:] = 0
        return x

    changes = {f"blk.1.ffn_{name}.weight": padded for name in ("gate", "up")}
    assert not kinds(write_model(tmp_path / "m.gguf", changes=changes))


def test_a_bias_of_zeros_is_a_fault_only_where_other_layers_have_one(tmp_path):
    every = {f"blk.{i}.attn_q.bias": np.zeros_like for i in range(3)}
    assert not kinds(write_model(tmp_path / "all.gguf", changes=every))
    one = write_model(tmp_path / "one.gguf", changes={"blk.1.attn_q.bias": np.zeros_like})
    assert kinds(one) == [("zeros", "blk.1.attn_q.bias")]


def test_twins_are_both_named(tmp_path):
    kept = {}

    def keep(x):
        kept["x"] = x
        return x

    changes = {"blk.0.ffn_down.weight": keep, "blk.2.ffn_down.weight": lambda x: kept["x"]}
    path = write_model(tmp_path / "m.gguf", "Q4_0", changes=changes)
    assert kinds(path) == [("twins", "blk.0.ffn_down.weight"), ("twins", "blk.2.ffn_down.weight")]


@pytest.mark.parametrize(("keys", "kind", "part"), [
    ({"qwen2.embedding_length": 32}, "shape", "qwen2.embedding_length is 32"),
    ({"qwen2.feed_forward_length": 120}, "shape", "qwen2.feed_forward_length is 120"),
    ({"qwen2.attention.head_count": 8}, "shape", "qwen2.attention.head_count x qwen2.attention.key_length is 128"),
    ({"qwen2.block_count": 4}, "layers", "has no tensor of layer 3"),
    ({"qwen2.block_count": 2}, "layers", "has tensors of layer 2"),
    ({"tokenizer.ggml.eos_token_id": 5000}, "special_id", "tokenizer.ggml.eos_token_id is 5000"),
])
def test_keys_that_contradict_the_tensors_are_named_and_the_file_opens_all_the_same(tmp_path, keys, kind, part):
    audit = audit_file(write_model(tmp_path / "m.gguf", tokenizer="bpe", keys=keys))
    assert any(f.kind == kind and part in f.sentence for f in audit.proofs), [f.sentence for f in audit.findings]
    assert audit.exit_code == 1


def test_tokens_without_a_row_are_named(tmp_path):
    path = write_model(tmp_path / "m.gguf", tokenizer="bpe", changes={"token_embd.weight": lambda x: x[:-3]})
    assert "token_row" in [f.kind for f in audit_file(path).proofs]


def test_an_unknown_architecture_is_audited_and_said_not_to_run(tmp_path):
    path = edited(write_model(tmp_path / "m.gguf", "Q8_0", arch="qwen2"), "blk.1.ffn_up.weight",
                  lambda raw: put(raw, 0, HALF["nan"]))
    path.write_bytes(path.read_bytes().replace(b"qwen2", b"qwenX"))
    audit = audit_file(path)
    assert "qwenX" in audit.facts["not_run"] and audit.facts["unread"] is None
    assert [f.kind for f in audit.proofs] == ["not_finite"]


def test_a_tensor_that_nothing_reads_is_listed_as_a_fact(tmp_path):
    from tests.support.builders import write_tiny_gguf

    path = write_tiny_gguf(tmp_path / "m.gguf", tensors={"blk.1.adapter.weight": np.ones((64, 64), np.float32)})
    audit = audit_file(path)
    assert audit.facts["unread"] == ["blk.1.adapter.weight"] and not audit.proofs
    assert "blk.1.adapter.weight" in audit.facts["not_run"]


def test_a_qwen2_without_its_biases_is_a_hint(tmp_path):
    audit = audit_file(write_model(tmp_path / "m.gguf", bias=False))
    assert [f.kind for f in audit.hints] == ["expected"] * 3 and audit.exit_code == 0
    assert audit.hints[0].sentence == "every qwen2 has attn_q.bias, and no layer of this file does"


def test_a_scan_ends_when_it_is_cancelled():
    weight = Weight("w", "Q8_0", (64, 64), quantised(np.ones((64, 64), np.float32), "Q8_0").reshape(-1))
    assert not scan_tensor(weight, never).not_finite.count
    with pytest.raises(Cancelled):
        scan_tensor(weight, lambda: True)
