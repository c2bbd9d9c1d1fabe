"""The audit beside an original: tiny models that the tests' own converter writes, clean, with faults, and hostile ones.

All faults of all families: python -m tests.original_suite.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from apr_tui.cli.main import main
from core.audit.original import OriginalResult, compare_with_original
from core.system.errors import Cancelled, FileError
from tests.audit.original_families import FAMILIES, make, write, write_file, write_original
from tests.audit.original_faults import FAULTS
from tests.original_suite import try_fault

SHARED = Path(__file__).parents[4] / "shared" / "data"
SAMPLED = {  # fault -> family, for the default run
    "norm not folded": "gemma2", "norm folded twice": "gemma3", "q or k not permuted": "llama",
    "k by the query heads": "granite", "permuted without cause": "qwen2", "gate and up exchanged": "qwen3",
    "bias dropped": "gptneox", "bias zero": "gpt2", "another layer's": "phi3", "tensor extra": "qwen3moe",
    "transposed": "llama", "Conv1D not turned": "gpt2", "block scaled": "phi3", "experts exchanged": "qwen3moe",
    "fused order": "gptneox", "low-rank merge missed": "qwen2",
    "merge without effect": "qwen3", "merged twice": "gemma2",
    "A_log without sign": "mamba2", "A_log as it is": "mamba2", "vocabulary shifted": "llama",
    "rope base missing": "llama", "wrong scale": "granite", "wrong eos": "gpt2", "tokens shifted": "qwen2",
    "template changed": "qwen3",
}


def compare(file: Path, original: Path) -> OriginalResult:
    return compare_with_original(file, original, cancel=lambda: False)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_clean_conversion_has_no_finding(family: str, tmp_path: Path) -> None:
    result = compare(*write(make(family, 5), tmp_path, "Q8_0", 2))
    assert not result.findings, [f.sentence for f in result.findings]
    assert "without_a_name" not in result.facts, result.facts


@pytest.mark.parametrize("name", SAMPLED)
def test_a_planted_conversion_fault_is_named_alone_with_its_tensor(name: str, tmp_path: Path) -> None:
    fault = next(f for f in FAULTS if f.name == name)
    trial = try_fault(fault, SAMPLED[name], 2, tmp_path)
    assert trial is not None and trial.is_exact, trial and [(f.kind, f.sentence) for f in trial.findings]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the reference models are not here")
@pytest.mark.slow
def test_every_reference_model_with_an_original_has_no_finding() -> None:
    folders = sorted((SHARED / "originals").iterdir())
    alarms = {d.name: compare(SHARED / "families" / f"{d.name}.gguf", d).findings for d in folders}
    assert len(alarms) >= 12 and not any(alarms.values()), alarms


def test_another_gguf_is_an_original_and_a_changed_key_and_tensor_are_named(tmp_path: Path) -> None:
    made = make("qwen2", 1)
    original = write_file(made, tmp_path / "a.gguf")
    made.keys["qwen2.rope.freq_base"] = 1e6
    made.tensors["blk.1.ffn_up.weight"] = -made.tensors["blk.1.ffn_up.weight"]
    found = compare(write_file(made, tmp_path / "b.gguf"), original).findings
    assert [(f.kind, f.tensor) for f in found] == [("key", None), ("sign", "blk.1.ffn_up.weight")]


def test_a_gguf_beside_itself_in_another_type_has_no_finding(tmp_path: Path) -> None:
    made = make("gemma3", 2)
    original = write_file(made, tmp_path / "a.gguf", "Q8_0")
    assert not compare(write_file(made, tmp_path / "b.gguf", "Q4_0"), original).findings


def test_one_safetensors_alone_is_an_original(tmp_path: Path) -> None:
    file, folder = write(make("llama", 3), tmp_path)
    assert not compare(file, folder / "model.safetensors").findings


def test_other_weights_are_one_finding(tmp_path: Path) -> None:
    file = write_file(make("qwen2", 1), tmp_path / "a.gguf")
    found = compare(file, write_original(make("qwen2", 9), tmp_path / "other")).findings
    assert [f.kind for f in found] == ["other model"], [f.sentence for f in found]


def test_a_wrong_architecture_is_named(tmp_path: Path) -> None:
    file, folder = write(make("qwen3", 1), tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "qwen2"}))
    assert "architecture" in {f.kind for f in compare(file, folder).findings}


def test_the_command_prints_json_and_exits_1_on_a_proof(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make("llama", 4)
    made.keys["llama.rope.freq_base"] = 1.5e6
    file, folder = write(made, tmp_path)
    assert main(["audit", str(file), str(folder)]) == 1
    assert capsys.readouterr().out.startswith("PROOF: model.gguf: 1 proof and ")
    code = main(["audit", str(file), str(folder), "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 1 and said["original"] == "original"
    assert "llama.rope.freq_base is 1500000; config.json says 50000" in [f["sentence"] for f in said["findings"]]
    assert said["facts"]["original"]["tensors"]["different"] == 0


def test_the_text_names_the_original_and_a_clean_pair_exits_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, folder = write(make("qwen3", 4), tmp_path)
    assert main(["audit", str(file), str(folder)]) == 0
    said = capsys.readouterr().out
    assert said.startswith("NOTHING FOUND: ") and "beside its original original: 35 equal" in said


def _pickles(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02.")


def _header(text: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text)
    return spoil


def _index(names: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return spoil


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickles only": (_pickles, "pickles are never opened"),
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), "no JSON object"),
    "deep JSON": (lambda d: (d / "config.json").write_text("[" * 100_000), "not a JSON document"),
    "header beyond the file": (lambda d: (d / "model.safetensors").write_bytes(b"\xff" * 64), "cut short"),
    "header is no object": (_header(b"[1]"), "no JSON object"),
    "negative shape": (_header(b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'), "damaged"),
    "bytes outside": (_header(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'), "its place is"),
    "huge shape": (_header(b'{"a":{"dtype":"F32","shape":[4611686018427387903,9],"data_offsets":[0,4]}}'), "its place"),
    "index out of the folder": (_index({"a": "../model.safetensors"}), "plain names"),
    "index names a pickle": (_index({"a": "model.bin"}), "plain names"),
    "index of numbers": (_index({"a": 3}), "no weight_map"),
    "shard missing": (_index({"a": "other.safetensors"}), "does not exist"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_damaged_original_is_refused_by_name(name: str, tmp_path: Path) -> None:
    file, folder = write(make("llama", 0), tmp_path)
    spoil, words = HOSTILE[name]
    spoil(folder)
    with pytest.raises(FileError, match=words):
        compare(file, folder)


def test_a_named_pipe_is_not_read(tmp_path: Path) -> None:
    import os

    file, folder = write(make("llama", 0), tmp_path)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    with pytest.raises(FileError, match="is a pipe; a regular file was needed"):
        compare(file, folder)


@pytest.mark.parametrize("value", [None, "x", -1, 1e400, [], {}, [[]], True, 10**30])
def test_a_configuration_of_other_types_ends_in_no_traceback(value: object, tmp_path: Path) -> None:
    made = make("gemma2", 0)
    made.config = {k: v if k == "model_type" else value for k, v in made.config.items()}
    scaling = {"rope_type": "llama3", "factor": 0}
    made.config |= {"layer_types": value, "rope_parameters": value, "rope_scaling": scaling}
    made.documents = {"tokenizer.json": {"model": {"vocab": {"a": value}, "merges": value}, "added_tokens": [value]},
                      "tokenizer_config.json": {"chat_template": value, "eos_token": value}}
    file = write_file(made, tmp_path / "a.gguf")
    folder = write_original(replace(made, config={"model_type": "gemma2"}), tmp_path / "original")
    (folder / "config.json").write_text(json.dumps(made.config))
    assert isinstance(compare(file, folder), OriginalResult)


def test_cancelling_ends_it(tmp_path: Path) -> None:
    with pytest.raises(Cancelled):
        compare_with_original(*write(make("llama", 0), tmp_path), cancel=lambda: True)


def test_an_adapter_that_fits_no_weight_is_refused(tmp_path: Path) -> None:
    made = make("llama", 0)
    made.adapter = {f"base_model.model.model.layers.0.mlp.down_proj.lora_{x}.weight": np.ones(s, np.float32)
                    for x, s in (("A", (4, 7)), ("B", (64, 4)))}
    file, folder = write(made, tmp_path)
    with pytest.raises(FileError, match="the adapter's delta"):
        compare(file, folder)


def test_the_mxfp4_pairs_of_an_original_are_read_and_exchanged_halves_named(tmp_path: Path) -> None:
    import gguf
    from safetensors.numpy import save_file

    random = np.random.default_rng(4)
    packed, scales = random.integers(0, 256, (2, 8, 3, 16), np.uint8), random.integers(120, 130, (2, 8, 3), np.uint8)
    nibbles = np.stack((packed & 15, packed >> 4), -1).reshape(2, 8, 3, 32)  # in order of the columns
    ours = np.concatenate((scales[..., None], nibbles[..., :16] | nibbles[..., 16:] << 4), -1).reshape(2, 8, 51)
    original = tmp_path / "original"
    original.mkdir()
    (original / "config.json").write_text(json.dumps({"model_type": "gpt_oss"}))
    root = "model.layers.0.mlp.experts.gate_up_proj"
    save_file({f"{root}_blocks": packed, f"{root}_scales": scales}, original / "model.safetensors")

    def kinds(halves: tuple[str, str]) -> set[str]:
        file = tmp_path / f"{halves[0]}.gguf"
        writer = gguf.GGUFWriter(file, "gpt-oss")
        writer.add_block_count(1)
        for i, half in enumerate(halves):
            writer.add_tensor(f"blk.0.ffn_{half}_exps.weight", np.ascontiguousarray(ours[:, i::2]),
                              raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        result = compare(file, original)
        return {f.kind for f in result.findings if f.tensor} or set(result.facts["tensors"].items())  # type: ignore[attr-defined]

    assert kinds(("gate", "up")) == {("equal", 2), ("rounded", 0), ("different", 0)}
    assert kinds(("up", "gate")) == {"gate and up exchanged"}
