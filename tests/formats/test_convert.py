"""Conversion both ways: the same bytes and keys where both formats can hold them, a refusal or a note where not."""

import json
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest

from core.formats.apr_writer import write_apr, write_container
from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.formats.tensor_stream import passthrough
from core.model.arch import read_arch
from core.model.convert import convert
from core.quant.weight import Weight
from core.system.errors import FileError, OutputError, UsageError
from tests.support.builders import write_tiny_gguf

SHARED = Path(__file__).parents[3] / "shared" / "data"
K_SIZES = {"d_model": 256, "d_ff": 256}


def there_and_back(source: Path) -> tuple[ModelFile, ModelFile, ModelFile]:
    """Convert a GGUF to .apr and back; returns all three, opened."""
    folder = source.parent
    convert(source, folder / "there.apr")
    convert(folder / "there.apr", folder / "back.gguf")
    return open_model(source), open_model(folder / "there.apr"), open_model(folder / "back.gguf")


def content(model: ModelFile) -> dict[str, tuple]:
    """Return each tensor's type, shape and bytes."""
    return {name: (weight.quant, weight.shape, weight.data.tobytes()) for name, weight in model.weights.items()}


def keys(model: ModelFile) -> dict:
    """Return every key with its type and value."""
    kinds = {name: (model.types.get(name), getattr(value, "type", None)) for name, value in model.keys.items()}
    return {name: (*kind, model.key(name)) for name, kind in kinds.items()}


def metadata(path: Path) -> dict:
    """Return an .apr file's JSON."""
    data = path.read_bytes()
    at, size = struct.unpack_from("<QI", data, 12)
    return json.loads(data[at : at + size])


# --- what is kept ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quant", ["F32", "F16", "BF16", "Q4_K", "Q6_K"])
@pytest.mark.parametrize(("arch", "tied", "tokenizer"), [
    ("llama", True, "spm"), ("qwen2", False, "bpe"), ("qwen3", True, None),
])
def test_gguf_to_apr_to_gguf_keeps_every_key_and_byte(arch, tied, tokenizer, quant, tmp_path):
    source = write_tiny_gguf(tmp_path / "x.gguf", arch, quant=quant, tied=tied, tokenizer=tokenizer, **K_SIZES)
    first, apr, second = there_and_back(source)
    assert content(first) == content(apr) == content(second)
    assert keys(first) == keys(second)
    assert read_arch(first) == read_arch(apr) == read_arch(second)
    assert sorted(os.listdir(tmp_path)) == ["back.gguf", "there.apr", "x.gguf"], "a temporary file was left behind"


def test_keys_that_apr_has_no_word_for_come_back_with_their_types(tmp_path):
    rare = {
        "general.file_type": 15, "general.license": "mit", "general.name": 'ä "\n', "x.list": [1.5, 2.5],
        "qwen2.rope.scaling.type": "yarn", "qwen2.rope.scaling.factor": 4.0, "x.lists": ["a", ""],
        "tokenizer.ggml.add_space_prefix": False,
        "qwen2.attention.value_length": 8, "qwen2.attention.key_length": 16,
    }
    first, apr, second = there_and_back(write_tiny_gguf(tmp_path / "x.gguf", keys=rare, tokenizer="bpe"))
    assert keys(first) == keys(second)
    assert set(metadata(apr.path)["gguf"]) == {
        "general.file_type", "tokenizer.ggml.add_space_prefix", "x.list", "x.lists", "qwen2.rope.scaling.type",
        "qwen2.rope.scaling.factor", "qwen2.attention.value_length",
    }


def test_an_unusual_type_of_a_usual_key_comes_back(tmp_path):
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_uint64("llama.block_count", 1)
    writer.add_float64("llama.rope.freq_base", 10000.1)
    writer.add_float32("llama.odd", float("inf"))
    writer.add_key_value("tokenizer.ggml.token_type", [1, 2], gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.UINT8)
    writer.add_tensor("token_embd.weight", np.ones((2, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    first, _, second = there_and_back(tmp_path / "x.gguf")
    derived = {"llama.vocab_size": ("UINT32", None, 2)}  # .apr's readers need it
    assert keys(second) == keys(first) | derived


@pytest.mark.parametrize("name", ["stories260k.gguf", "qwen2-vocab.gguf"])
def test_real_files_come_back_whole(name, tmp_path):
    if not (SHARED / name).exists():
        pytest.skip("the shared files are not here")
    (tmp_path / name).symlink_to(SHARED / name)
    first, apr, second = there_and_back(tmp_path / name)
    assert content(first) == content(apr) == content(second)
    assert keys(first) == keys(second)


def test_the_apr_file_is_as_the_format_asks(tmp_path):
    source = write_tiny_gguf(tmp_path / "x.gguf", "llama", 12, tied=True, tokenizer="bpe", quant="Q4_K", **K_SIZES)
    convert(source, tmp_path / "x.apr")
    meta, model = metadata(tmp_path / "x.apr"), open_model(tmp_path / "x.apr")
    assert meta["tied_embeddings"] is True and "lm_head.weight" not in model.weights
    assert meta["rope_type"] == 0 and meta["architecture"] == "llama"
    assert [name for name, value in meta.items() if value is None] == ["license", "data_source", "data_license"]
    flags = struct.unpack_from("<H", (tmp_path / "x.apr").read_bytes(), 6)[0]
    assert flags == 0x400 | 0x200 | 0x20, hex(flags)
    starts = [weight.data.ctypes.data % 64 for weight in model.weights.values()]  # the map begins on a page
    assert set(starts) == {0}
    assert model.notes == () and model.verify is not None
    model.verify()


def test_the_same_model_gives_the_same_bytes(tmp_path):
    source = write_tiny_gguf(tmp_path / "x.gguf", tokenizer="spm")
    for name in ("a.apr", "b.apr", "a.gguf", "b.gguf"):
        convert(source, tmp_path / name)
    assert (tmp_path / "a.apr").read_bytes() == (tmp_path / "b.apr").read_bytes()
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


# --- what cannot be kept ---------------------------------------------------------------------------------------------


def test_types_without_an_apr_code_are_refused_with_the_size(tmp_path):
    source = write_tiny_gguf(tmp_path / "x.gguf", quant="Q8_0", tensors={"output.weight": None})
    with pytest.raises(FileError, match=r"15 tensors .*Q8_0.*MB \(--to f16\) or .*MB \(--to f32\)"):
        convert(source, tmp_path / "x.apr")
    assert not (tmp_path / "x.apr").exists()


@pytest.mark.parametrize(("to", "dtype"), [("f16", np.float16), ("f32", np.float32)])
def test_types_without_an_apr_code_are_decoded_on_request_and_others_kept(to, dtype, tmp_path):
    import gguf

    source = write_tiny_gguf(tmp_path / "x.gguf", quant="Q8_0", quants={"blk.0.ffn_up.weight": "F16"})
    notes = convert(source, tmp_path / "x.apr", to=to)
    first, second = open_model(source), open_model(tmp_path / "x.apr")
    assert any("15 of 27 tensors (Q8_0) were decoded" in note for note in notes)
    for name, weight in first.weights.items():
        found = second.weights[name]
        if weight.quant != "Q8_0":
            assert (found.quant, found.data.tobytes()) == (weight.quant, weight.data.tobytes())
            continue
        blocks = weight.data.reshape(weight.shape[0], -1)
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType.Q8_0)
        assert found.quant == to.upper() and found.shape == weight.shape
        assert np.array_equal(found.data.view(dtype).reshape(weight.shape), values.astype(dtype)), name


def test_a_value_beyond_float16_is_refused_and_named(tmp_path):
    huge = np.full((128, 64), 1e6, np.float32)
    source = write_tiny_gguf(tmp_path / "x.gguf", quant="Q8_0", tensors={"blk.0.ffn_up.weight": huge})
    with pytest.raises(FileError, match=r"blk\.0\.ffn_up\.weight.*Use --to f32"):
        convert(source, tmp_path / "x.apr", to="f16")
    assert os.listdir(tmp_path) == ["x.gguf"]


def apr_of(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]], **meta) -> Path:
    """Write an .apr file of these tensors."""
    weights = [Weight(name, *kind, np.frombuffer(data, np.uint8)) for name, (*kind, data) in tensors.items()]
    with path.open("wb") as out:
        write_container(out, {"architecture": "llama", "rope_type": 0} | meta,
                        [passthrough(weight) for weight in weights])
    return path


def test_padded_rows_of_k_quants_are_decoded_row_by_row_on_the_way_to_gguf(tmp_path):
    import gguf

    rows = np.random.default_rng(0).integers(0, 100, (3, 2 * 144), np.uint8)
    data = rows.tobytes()
    source = apr_of(tmp_path / "x.apr", {"w": ("Q4_K", (3, 300), data), "v": ("Q4_K", (3, 512), data)})
    notes = convert(source, tmp_path / "x.gguf")
    weights = open_model(tmp_path / "x.gguf").weights
    wanted = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q4_K)[:, :300]
    assert (weights["v"].quant, weights["v"].data.tobytes()) == ("Q4_K", rows.tobytes())
    assert weights["w"].quant == "F32" and np.array_equal(weights["w"].data.view(np.float32).reshape(3, 300), wanted)
    assert any("1 of 2 tensors (Q4_K) were decoded to F32" in note for note in notes)


def test_aprs_own_types_are_decoded_on_the_way_to_gguf(tmp_path):
    q4 = struct.pack("<e", 0.5) + bytes([0x80 | 0x9] * 16)  # even values (9 - 8) / 2, odd ones (8 - 8) / 2
    q8 = struct.pack("<f", 0.25) + bytes([4, 255])
    source = apr_of(tmp_path / "x.apr", {"a": ("APR_Q4", (4, 8), q4), "b": ("APR_Q8", (2,), q8)})
    convert(source, tmp_path / "x.gguf")
    weights = open_model(tmp_path / "x.gguf").weights
    assert weights["a"].data.view(np.float32).tolist() == [0.5, 0.0] * 16
    assert weights["b"].data.view(np.float32).tolist() == [1.0, -0.25]


def rope(head: np.ndarray, pairing: str) -> np.ndarray:
    """Turn a head's channels by position 3, slow and plain."""
    out, half = head.copy(), len(head) // 2
    for i in range(half):
        a, b = (2 * i, 2 * i + 1) if pairing == "adjacent" else (i, half + i)
        angle = 3 * 10000.0 ** (-2 * i / len(head))
        out[a] = head[a] * np.cos(angle) - head[b] * np.sin(angle)
        out[b] = head[a] * np.sin(angle) + head[b] * np.cos(angle)
    return out


@pytest.mark.parametrize(("arch", "rope_type", "there", "here"), [
    ("llama", 2, "halves", "adjacent"), ("qwen3", 0, "adjacent", "halves"),
])
def test_another_rope_pairing_becomes_another_order_of_rows(arch, rope_type, there, here, tmp_path):
    """q turned at position 3 times k must be the same number, by the source's pairing and by GGUF's."""
    rng = np.random.default_rng(3)
    shapes = {
        "attn_q.weight": (16, 4), "attn_q.bias": (16,), "attn_k.weight": (8, 4), "attn_q_norm.weight": (8,),
        "x": (16, 4),
    }
    arrays = {f"blk.0.{name}": rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    source = apr_of(
        tmp_path / "x.apr", {name: ("F32", a.shape, a.tobytes()) for name, a in arrays.items()},
        architecture=arch, rope_type=rope_type, hidden_size=16, num_heads=2, num_kv_heads=1,
    )
    notes = convert(source, tmp_path / "x.gguf")
    assert any("another order" in note for note in notes)
    weights = open_model(tmp_path / "x.gguf").weights
    after = {name: weight.data.view(np.float32).reshape(weight.shape) for name, weight in weights.items()}

    def scores(values, pairing):
        x = np.arange(4, dtype=np.float32)
        q = values["blk.0.attn_q.weight"] @ x + values["blk.0.attn_q.bias"]
        q, k = q.reshape(2, 8) * values["blk.0.attn_q_norm.weight"], values["blk.0.attn_k.weight"] @ x
        return [float(rope(head, pairing) @ k) for head in q]

    assert scores(after, here) == pytest.approx(scores(arrays, there), rel=1e-5)
    assert scores(after, there) != pytest.approx(scores(arrays, there), rel=1e-2)
    assert np.array_equal(after["blk.0.x"], arrays["blk.0.x"])
    assert "apr.rope_type" not in open_model(tmp_path / "x.gguf").keys


# --- what goes wrong -------------------------------------------------------------------------------------------------


def test_a_source_changed_in_its_data_is_not_converted(tmp_path):
    convert(write_tiny_gguf(tmp_path / "x.gguf"), tmp_path / "x.apr")
    data = bytearray((tmp_path / "x.apr").read_bytes())
    data[-200] ^= 4
    (tmp_path / "x.apr").write_bytes(data)
    with pytest.raises(FileError, match="footer's checksum"):
        convert(tmp_path / "x.apr", tmp_path / "y.gguf")
    assert not (tmp_path / "y.gguf").exists()


@pytest.mark.parametrize("suffix", [".apr", ".gguf"])
def test_an_existing_output_is_kept_unless_forced(suffix, tmp_path):
    source, out = write_tiny_gguf(tmp_path / "x.gguf"), tmp_path / f"y{suffix}"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(source, out)
    assert out.read_bytes() == b"mine"
    convert(source, out, force=True)
    assert open_model(out).weights.keys() == open_model(source).weights.keys()


def test_wrong_options_are_usage_errors(tmp_path):
    source = write_tiny_gguf(tmp_path / "x.gguf")
    for out, to, force, word in (
        ("y.bin", None, False, "neither"), ("y.apr", "q8", False, "--to q8"), ("x.gguf", None, True, "is the file"),
    ):
        with pytest.raises(UsageError, match=word):
            convert(source, tmp_path / out, to=to, force=force)
    (tmp_path / "folder.apr").mkdir()
    with pytest.raises(UsageError, match="folder"):
        convert(source, tmp_path / "folder.apr", force=True)


@pytest.mark.parametrize("suffix", [".apr", ".gguf"])
def test_an_output_that_cannot_be_written_is_code_7_and_leaves_nothing(suffix, tmp_path):
    source = write_tiny_gguf(tmp_path / "x.gguf")
    with pytest.raises(OutputError, match="could not be written") as caught:
        convert(source, tmp_path / "absent" / f"y{suffix}")
    assert caught.value.code == 7
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))  # as a full disk: the write itself fails
    try:
        with pytest.raises(OutputError, match="Nothing was left behind"):
            convert(source, tmp_path / f"y{suffix}")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["x.gguf"]


def test_a_vocabulary_too_large_for_apr_is_refused(tmp_path):
    model = open_model(write_tiny_gguf(tmp_path / "x.gguf", keys={"general.description": "x" * (17 << 20)}))
    with pytest.raises(FileError, match="metadata takes"):
        write_apr(tmp_path / "x.apr", model)
    assert not (tmp_path / "x.apr").exists()
