"""What a check says of the file's own weights, of an overflow, and of whether it is the same file at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from core import session
from core.faults.value_faults import VALUE_FAULTS
from core.formats import identity
from core.formats.identity import Identity, digest_of, stamp_of
from core.formats.open_model import open_model
from core.proof.check_result import JUDGED
from core.proof.contract_gates import judge_gates
from core.proof.ladder_cache import open_ladder
from core.proof.verdict import Verdict
from core.quant import dequantize
from core.system.errors import NotComparableError, UsageError
from core.trace.request import Prompt, RunOptions, Source
from tests.support.small_models import IDS, write_model

PROMPT = Prompt(tokens=IDS)
UP = "blk.1.ffn_up.weight"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("truth") / "m.gguf", "Q8_0")


def checked(path: Path, **settings):
    return session.check(Source(path, device="cpu", **settings), PROMPT)


def at_the_weight(path: Path, name: str, change) -> Path:
    """Change the stored bytes of one tensor in place: its header stays."""
    weight = open_model(path).weights[name]
    whole = np.memmap(path, np.uint8, mode="r")
    at = bytes(whole).find(bytes(weight.data[:64]))
    data = bytearray(path.read_bytes())
    part = np.frombuffer(data, np.uint8, weight.data.size, at)
    change(part)
    path.write_bytes(data)
    return path


# the weights by themselves


def test_a_pass_says_what_was_judged_and_how_many_rows_were_decoded_twice(model):
    result = checked(model)
    assert result.verdict == "PASS" and result.exit_code == 0 and JUDGED in result.reasons
    assert any("second decoder (gguf-py)" in r and "of Q8_0" in r and "of F32" in r for r in result.reasons)


@pytest.mark.parametrize(("scale", "says"), [(np.nan, "has a NaN scale"), (np.inf, "has an Inf scale")])
def test_a_scale_that_is_not_finite_fails_naming_weight_and_row(scale, says, tmp_path):
    def change(data):
        data[11 * 68:11 * 68 + 2] = np.array([scale], "<f2").view(np.uint8)  # 64 columns are two blocks of 34 bytes

    path = at_the_weight(write_model(tmp_path / "m.gguf", "Q8_0"), UP, change)
    result = checked(path)
    assert (result.verdict, result.first, result.spot) == ("FAIL", (1, "ffn_up"), (None, 11))
    assert result.reasons[0] == f"{UP} row 11 {says}" and "could not be judged, from 1.ffn_up on" in result.reasons[1]


@pytest.mark.parametrize(("changes", "says"), [
    ({UP: lambda x: x * 0}, f"{UP} is zeros, all 128 rows"),
    ({UP: lambda x: np.concatenate((x[:100], x[100:] * 0))}, f"{UP} rows 100 to 127 are zeros"),
    ({"blk.1.ffn_norm.weight": lambda x: x * 0}, "blk.1.ffn_norm.weight is zeros, all 64 elements"),
    ({"blk.1.attn_q.bias": lambda x: x * 0}, "blk.1.attn_q.bias is zeros, and those of other layers are not"),
    ({"token_embd.weight": lambda x: np.concatenate((x[:10], x[10:90] * 0, x[90:]))},
     "token_embd.weight rows 10 to 89 are zeros"),
])
def test_zeros_fail_naming_the_tensor(changes, says, tmp_path):
    result = checked(write_model(tmp_path / "m.gguf", changes=changes))
    assert result.verdict == "FAIL" and says in result.reasons, result.reasons


@pytest.mark.parametrize("changes", [
    {UP: lambda x: np.concatenate((x[:5], x[5:6] * 0, x[6:]))},                          # a neuron that was pruned
    {"token_embd.weight": lambda x: np.concatenate((x[:1] * 0, x[1:]))},                 # one token
    {"token_embd.weight": lambda x: np.concatenate((x[:110], x[110:] * 0))},             # the padding of a vocabulary
    {"output.weight": lambda x: np.concatenate((x[:50], x[50:] * 0))},                   # a head that never says them
    {f"blk.{i}.attn_q.bias": lambda x: x * 0 for i in range(3)},                         # a model without that bias
    {f"blk.1.ffn_{n}.weight": lambda x: np.concatenate((x[:96], x[96:] * 0)) for n in ("gate", "up")},  # a padded FFN
])
def test_zeros_that_whole_files_have_are_no_fault(changes, tmp_path):
    result = checked(write_model(tmp_path / "m.gguf", changes=changes))
    assert result.verdict == "PASS", result.reasons


def test_a_single_row_of_zeros_passes_and_is_told(tmp_path):
    one = {UP: lambda x: np.concatenate((x[:5], x[5:6] * 0, x[6:]))}
    result = checked(write_model(tmp_path / "m.gguf", changes=one))
    told = f"a single row of zeros, which may be a pruned neuron: {UP} row 5"
    assert result.verdict == "PASS" and told in result.reasons, result.reasons
    assert not any("single row" in r for r in checked(write_model(tmp_path / "good.gguf")).reasons)


def test_a_file_whose_end_was_never_written_fails(tmp_path):
    path = write_model(tmp_path / "m.gguf")
    for size in (100, 5000):
        data = bytearray(path.read_bytes())
        data[-size:] = bytes(size)
        path.write_bytes(data)
        result = checked(path)
        assert result.verdict == "FAIL" and "zeros" in result.reasons[0], (size, result.reasons)


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_a_wrong_decoder_fails_naming_the_type(quant, tmp_path, monkeypatch):
    path = write_model(tmp_path / "m.gguf", quant)
    right = dequantize.DECODERS[quant]

    def exchanged(raw, out):
        right(raw, out)
        out.copy_(torch.cat((out[:, 16:], out[:, :16]), 1))

    assert checked(path).verdict == "PASS"
    monkeypatch.setitem(dequantize.DECODERS, quant, exchanged)
    result = checked(path)
    assert result.verdict == "FAIL" and any(f"{quant} is decoded wrongly" in r for r in result.reasons), result.reasons


# float16


@pytest.fixture(scope="module")
def loud(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("loud") / "loud.gguf",
                       changes={UP: lambda x: x * 3000, "blk.1.ffn_down.weight": lambda x: x * 3000})


def test_f16_overflows_where_float16_does_and_the_check_says_where(loud, model):
    assert checked(loud).verdict == "PASS" and checked(model, compute="f16").verdict == "PASS"
    result = checked(loud, compute="f16")
    assert result.verdict == "FAIL" and result.first is not None and result.first[0] == 1
    assert result.overflow is not None and abs(result.overflow.value) > 65504
    assert "is Inf in float16" in result.reasons[0] and None not in result.spot


def test_f16_keeps_every_stage_in_float16(model):
    trace = session.trace(Source(model, device="cpu", compute="f16"), PROMPT, RunOptions(keep_values=True))
    assert trace.observed_equals_unobserved is True and trace.facts.compute == "f16"
    for place, value in trace.values.items():
        assert torch.equal(value, value.half().float()), place


# plants


@pytest.mark.parametrize("plant", ["nibbles@1.ffn_up", "no-bias@1.attn_out", "stale@logits", "scale-min@1.qkv"])
def test_a_plant_that_changes_nothing_is_a_usage_error(plant, model):
    assert plant.partition("@")[0] in VALUE_FAULTS
    for run in (session.check, session.trace):
        with pytest.raises(UsageError, match="changes nothing here"):
            run(Source(model, device="cpu", plant=plant), PROMPT)


def test_a_plant_that_works_goes_on_through_the_cache(model):
    source = Source(model, device="cpu", plant="stale@1.ffn_out")
    assert session.trace(source, PROMPT, RunOptions(generate=2)).generated


# identity


def retrained(path: Path) -> Path:
    """The same header, other weights."""
    def change(data):
        data[2:30] ^= 1

    return at_the_weight(path, UP, change)


def bundle_of(path: Path, out: Path, **options) -> Path:
    traced = session.trace(Source(path, device="cpu"), PROMPT, RunOptions(keep_values=True, **options))
    return session.export(traced, out)


def test_a_bundle_says_which_file_by_its_bytes(model, tmp_path):
    for identify in (True, False):
        out = bundle_of(model, tmp_path / str(identify), identify=identify)
        said = json.loads((out / "manifest.json").read_text())["origin"]["digest"]
        assert said == digest_of(open_model(model)) and session.open_bundle(out).digest == said


def test_a_bundle_is_not_checked_against_the_file_after_it_was_retrained(tmp_path):
    path = write_model(tmp_path / "m.gguf", "Q8_0")
    bundle, header = bundle_of(path, tmp_path / "a"), open_model(path).header_sha256
    assert session.check(Source(bundle), None, model=path).verdict == "PASS"
    retrained(path)
    assert open_model(path).header_sha256 == header
    with pytest.raises(NotComparableError, match=r"another file than m\.gguf is now"):
        session.check(Source(bundle), None, model=path)
    pair = session.compare(Source(bundle), Source(path, device="cpu"), None)
    assert pair.first is not None and pair.side is None and pair.error is None


def test_a_bundle_older_than_digests_is_shown_and_proves_nothing_by_weights(tmp_path):
    path = write_model(tmp_path / "m.gguf", "Q8_0")
    bundle = bundle_of(path, tmp_path / "a")
    manifest = (bundle / "manifest.json").read_text()
    said = json.loads(manifest)["origin"]["digest"]
    (bundle / "manifest.json").write_text(manifest.replace(f', "digest": "{said}"', ""))
    assert session.open_bundle(bundle).digest is None
    result = session.check(Source(bundle), None, model=path)
    assert (result.verdict, result.exit_code) == (Verdict.INCONCLUSIVE, 5) and "older than digests" in result.reasons[0]
    pair = session.compare(Source(bundle), Source(retrained(path), device="cpu"), None)
    assert (pair.verdict, pair.side) == (Verdict.INCONCLUSIVE, None)


def test_a_ladder_of_a_file_that_was_repaired_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path, other = (write_model(tmp_path / n, "Q8_0") for n in ("b.gguf", "a.gguf"))

    def traces():
        return [replace(session.trace(Source(p, device="cpu"), PROMPT)) for p in (other, path)]

    def interrupted():
        with open_ladder(*traces()) as known:
            before = dict(known.kl)
            known.add("1.output", 0.5)
            raise KeyboardInterrupt
        return before

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(ZeroDivisionError), open_ladder(*traces()) as known:
        assert known.kl == {"1.output": 0.5}, "the same bytes go on"
        raise ZeroDivisionError
    retrained(path)
    with open_ladder(*traces()) as known:
        assert known.kl == {}, "other bytes begin anew"


def test_a_kept_digest_is_used_only_while_the_file_is_untouched(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(identity, "LEAST_KEPT_BYTES", 0)
    monkeypatch.setattr(identity, "SETTLED_S", 0.0)
    path, taken = write_model(tmp_path / "m.gguf"), []
    monkeypatch.setattr(identity, "digest_of", lambda file: taken.append(file) or digest_of(file))

    def digest():
        stamp = stamp_of(path)
        return Identity(open_model(path), stamp).digest()

    first = digest()
    assert digest() == first and len(taken) == 1
    at_the_weight(path, UP, lambda data: np.bitwise_xor(data[:1], 1, out=data[:1]))
    assert digest() != first and len(taken) == 2


# gates


def test_the_gates_of_a_contract_say_which_model_they_are_of(tmp_path):
    path = write_model(tmp_path / "deep.gguf", n_layer=28, d_ff=32)
    found = {g.id: g for g in judge_gates(session.trace(Source(path, device="cpu"), PROMPT))}["SUB-FFN-001"]
    assert found.verdict == "NOT_MEASURED" and "width 64; the contract is of Qwen2.5-Coder-7B" in found.measured
