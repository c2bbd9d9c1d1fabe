"""The .apr reader and writer against files packed by hand, and every refusal that the format asks for."""

import io
import json
import struct
import zlib

import numpy as np
import pytest

from core.formats.apr_keys import apr_tensor, gguf_tensor
from core.formats.apr_reader import read_apr
from core.formats.apr_writer import write_container
from core.formats.open_model import open_model
from core.formats.tensor_stream import passthrough
from core.quant.weight import Weight
from core.system.errors import FileError

META = {
    "model_type": "qwen2", "architecture": "qwen2", "hidden_size": 4, "num_layers": 1, "num_heads": 2,
    "num_kv_heads": 1, "vocab_size": 3, "intermediate_size": 8, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_type": 2,
    "tied_embeddings": True,
}
F32 = np.arange(12, dtype="<f4").tobytes()
EMBEDDING = ("model.embed_tokens.weight", 0, (3, 4), F32)


def apr(
    meta=META, tensors=(EMBEDDING,), *, flags=0x400, version=(2, 0), sort=True, offsets=None, sizes=None, raw_meta=None,
) -> bytes:
    """Pack an .apr file by hand, by the published layout: the writer under test is not used."""
    def pad(data: bytes) -> bytes:
        return data + bytes(-len(data) % 64)

    text = raw_meta if raw_meta is not None else json.dumps(meta).encode()
    tensors = sorted(tensors, key=lambda t: t[0].encode()) if sort else tensors
    index, data = b"", b""
    for i, (name, code, shape, content) in enumerate(tensors):
        offset = len(data) if offsets is None else offsets[i]
        size = len(content) if sizes is None else sizes[i]
        index += struct.pack("<H", len(name.encode())) + name.encode() + struct.pack("<BB", code, len(shape))
        index += struct.pack(f"<{len(shape)}Q", *shape) + struct.pack("<QQ", offset, size)
        data += pad(content)
    index_at = 64 + len(pad(text))
    data_at = index_at + len(pad(index))
    head = b"APR\0" + struct.pack("<BBHIQIQQ", *version, flags, len(tensors), 64, len(text), index_at, data_at)
    head += struct.pack("<I", zlib.crc32(head + bytes(20))) + bytes(20)
    body = head + pad(text) + pad(index) + data
    return body + struct.pack("<I", zlib.crc32(body))


def opened(tmp_path, data: bytes):
    """Write bytes and open them."""
    path = tmp_path / "x.apr"
    path.write_bytes(data)
    return open_model(path)


# --- what is read ----------------------------------------------------------------------------------------------------


def test_names_keys_and_bytes_are_turned_into_ggufs(tmp_path):
    bias = ("model.layers.0.self_attn.q_proj.bias", 0, (4,), F32[:16])
    more = {"head_dim": 2, "chat_template": "x", "max_position_embeddings": 9}
    model = opened(tmp_path, apr(META | more, (EMBEDDING, bias)))
    assert {name: model.key(name) for name in model.keys} == {
        "general.architecture": "qwen2", "qwen2.embedding_length": 4, "qwen2.block_count": 1,
        "qwen2.attention.head_count": 2, "qwen2.attention.head_count_kv": 1, "qwen2.vocab_size": 3,
        "qwen2.feed_forward_length": 8, "qwen2.context_length": 9, "apr.rope_type": 2,
        "qwen2.attention.layer_norm_rms_epsilon": float(np.float32(1e-6)), "qwen2.rope.freq_base": 1e6,
        "qwen2.attention.key_length": 2, "qwen2.attention.value_length": 2, "tokenizer.chat_template": "x",
    }
    assert model.format == "apr" and not model.notes
    assert {(w.name, w.quant, w.shape) for w in model.weights.values()} == {
        ("token_embd.weight", "F32", (3, 4)), ("blk.0.attn_q.bias", "F32", (4,)),
    }
    assert model.weights["token_embd.weight"].data.tobytes() == F32
    assert model.weights["blk.0.attn_q.bias"].data.tobytes() == F32[:16]
    model.verify()


def test_the_tokenizer_is_turned_into_ggufs(tmp_path):
    flat = {
        "tokenizer.vocabulary": ["a", "b", "ä"], "tokenizer.merges": ["a b"], "tokenizer.model_type": "BPE",
        "tokenizer.pre_type": "qwen2", "tokenizer.token_type": [1, 3, 4], "tokenizer.scores": [0, -1.5, 0.1],
        "tokenizer.bos_token_id": 1, "tokenizer.eos_token_id": 2, "tokenizer.padding_token_id": 0,
        "tokenizer.add_bos_token": False, "tokenizer.chat_template": "{{ x }}", "tokenizer.vocab_size": 3,
    }
    model = opened(tmp_path, apr(META | flat))
    found = {name: model.key(name) for name in model.keys if name.startswith("tokenizer.")}
    assert found == {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": ["a", "b", "ä"],
        "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.token_type": [1, 3, 4],
        "tokenizer.ggml.scores": [0.0, -1.5, float(np.float32(0.1))], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.padding_token_id": 0, "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{{ x }}",
    }


@pytest.mark.parametrize(("canonical", "alias"), [
    ("hidden_size", "d_model"), ("num_layers", "num_hidden_layers"), ("num_heads", "n_head"),
    ("num_kv_heads", "n_kv_heads"), ("vocab_size", "n_vocab"), ("intermediate_size", "ffn_dim"),
    ("rms_norm_eps", "norm_eps"),
])
def test_an_alias_alone_is_read_and_beside_its_key_is_refused(canonical, alias, tmp_path):
    alone = {alias if name == canonical else name: value for name, value in META.items()}
    assert opened(tmp_path, apr(alone)).keys == opened(tmp_path, apr()).keys
    for value in (META[canonical], None, 7):
        with pytest.raises(FileError, match=f"both {canonical} and {alias}"):
            opened(tmp_path, apr(META | {alias: value}))


def test_unset_keys_spelled_as_null_count_as_absent(tmp_path):
    model = opened(tmp_path, apr(META | {"head_dim": None, "license": None, "chat_template": None}))
    assert model.keys == opened(tmp_path, apr()).keys


def test_the_object_gguf_is_read_back_first(tmp_path):
    kept = {
        "general.file_type": {"type": "UINT32", "value": 15}, "x.list": {"type": "INT32[]", "value": [1, -2]},
        "qwen2.vocab_size": {"type": "UINT64", "value": 99}, "qwen2.rope.freq_base": {"type": "FLOAT64"},
    }
    model = opened(tmp_path, apr(META | {"gguf": kept}))
    assert [model.key(name) for name in ("general.file_type", "x.list", "qwen2.vocab_size")] == [15, [1, -2], 99]
    assert model.types["qwen2.vocab_size"] == "UINT64" and model.types["qwen2.rope.freq_base"] == "FLOAT64"


@pytest.mark.parametrize(("meta", "weights", "note"), [
    ({"rope_type": None}, (EMBEDDING,), "rope_type is absent"),
    ({"tied_embeddings": None}, (EMBEDDING,), "lm_head.weight is absent"),
    ({}, (EMBEDDING, ("lm_head.weight", 0, (3, 4), F32)), "tied_embeddings is true"),
    ({"architecture": None, "hf_architecture": "Qwen2ForCausalLM"}, (EMBEDDING,), "architecture qwen2"),
    ({"architecture": "mistral"}, (EMBEDDING,), "architecture llama"),
    ({"architecture": None, "model_type": "Qwen3"}, (EMBEDDING,), "architecture qwen3"),
    ({"surprise": 1}, (EMBEDDING,), "'surprise'"),
])
def test_what_the_reader_had_to_assume_is_a_note(meta, weights, note, tmp_path):
    assert any(note in line for line in opened(tmp_path, apr(META | meta, weights)).notes)


def test_rows_of_k_quants_are_padded_to_whole_blocks(tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, 3 * 2 * 144, np.uint8).tobytes()
    weight = opened(tmp_path, apr(tensors=(("w", 12, (3, 300), raw),))).weights["w"]
    assert (weight.quant, weight.shape, weight.data.tobytes()) == ("Q4_K", (3, 300), raw)
    with pytest.raises(FileError, match=f"has {4 * 144} bytes; that type needs {6 * 144}"):  # blocks through all values
        opened(tmp_path, apr(tensors=(("w", 12, (3, 300), raw[: 4 * 144]),)))


@pytest.mark.parametrize(("code", "quant", "n_bytes"), [
    (0, "F32", 132), (1, "F16", 66), (30, "BF16", 66), (3, "F64", 264), (4, "I32", 132), (5, "I64", 264), (6, "I8", 33),
    (7, "U8", 33), (128, "APR_Q4", 36), (8, "APR_Q4", 36), (129, "APR_Q8", 37), (9, "APR_Q8", 37),
])
def test_each_dtype_code_names_its_type_and_size(code, quant, n_bytes, tmp_path):
    weight = opened(tmp_path, apr(tensors=(("w", code, (3, 11), bytes(n_bytes)),))).weights["w"]
    assert (weight.quant, len(weight.data)) == (quant, n_bytes)
    with pytest.raises(FileError, match=f"that type needs {n_bytes}"):
        opened(tmp_path, apr(tensors=(("w", code, (3, 11), bytes(n_bytes + 1)),)))


def test_data_may_stand_in_another_order_than_the_index(tmp_path):
    tensors = (("a", 0, (4,), F32[:16]), ("b", 0, (4,), F32[16:32]))
    model = opened(tmp_path, apr(tensors=tensors, offsets=(64, 0)))
    assert model.weights["a"].data.tobytes() == F32[16:32] and model.weights["b"].data.tobytes() == F32[:16]


# --- what is refused -------------------------------------------------------------------------------------------------


def damaged(at: int, value: int) -> bytes:
    """Change one byte of a good file."""
    data = bytearray(apr())
    data[at] = value
    return bytes(data)


REFUSED = {  # what is wrong -> the file, and a word that the message must have
    "APRN": (b"APRN" + apr()[4:], "APRN"),
    "APR1": (b"APR1" + apr()[4:], "APR1"),
    "APR2": (b"APR2" + apr()[4:], "APR2"),
    "version 3": (apr(version=(3, 0)), "version 3.0"),
    "a header changed": (damaged(13, 1), "header's checksum"),
    "a reserved byte changed": (damaged(60, 1), "header's checksum"),
    "LZ4": (apr(flags=0x401), "LZ4"),
    "ZSTD": (apr(flags=0x402), "ZSTD"),
    "encrypted": (apr(flags=0x404), "ENCRYPTED"),
    "sharded": (apr(flags=0x410), "SHARDED"),
    "column-major": (apr(flags=0x800), "LAYOUT_COLUMN_MAJOR"),
    "no tensors where some are counted": (apr(tensors=()).replace(b"\0" * 4, b"\1\0\0\0", 1), "checksum"),
    "an unsorted index": (apr(tensors=(("b", 0, (4,), F32[:16]), ("a", 0, (4,), F32[:16])), sort=False), "sorted"),
    "a name twice": (apr(tensors=(("a", 0, (4,), F32[:16]), ("a", 0, (4,), F32[:16]))), "twice"),
    "a name in both formats' words": (apr(tensors=(EMBEDDING, ("token_embd.weight", 0, (3, 4), F32))), "twice"),
    "an empty name": (apr(tensors=(("", 0, (4,), F32[:16]),)), "0 bytes"),
    "a name of 257 bytes": (apr(tensors=(("n" * 257, 0, (4,), F32[:16]),)), "257 bytes"),
    "nine dimensions": (apr(tensors=(("a", 0, (1,) * 9, F32[:4]),)), "9 dimensions"),
    "a dimension of 0": (apr(tensors=(("a", 0, (0,), b""),)), "dimension of 0"),
    "sizes whose product overflows": (apr(tensors=(("a", 0, (1 << 63, 1 << 63), F32),)), "needs"),
    "an unknown dtype": (apr(tensors=(("a", 77, (4,), F32[:16]),)), "code 77"),
    "a dtype of GGML that .apr lacks": (apr(tensors=(("a", 13, (256,), bytes(176)),)), "code 13"),
    "an offset outside": (apr(offsets=(1 << 50,)), "cut short"),
    "an offset of 2^64 - 64": (apr(offsets=((1 << 64) - 64,)), "cut short"),
    "an offset off the alignment": (apr(offsets=(32,)), "multiple of 64"),
    "tensors on one place": (
        apr(tensors=(("a", 0, (4,), F32), ("b", 0, (4,), F32)), offsets=(0, 0), sizes=(16, 16)), "overlaps",
    ),
    "bytes appended": (apr() + b"x", "appended"),
    "no JSON": (apr(raw_meta=b"not JSON"), "good JSON"),
    "no metadata": (apr(raw_meta=b""), "good JSON"),
    "JSON of another encoding": (apr(raw_meta=b'{"name": "\xff"}'), "good JSON"),
    "half a surrogate pair": (apr(raw_meta=b'{"name": "\\ud800"}'), "good JSON"),
    "JSON with NaN": (apr(raw_meta=b'{"rope_theta": NaN}'), "NaN"),
    "JSON nested too deep": (apr(raw_meta=b"[" * 200_000), "good JSON"),
    "a list for metadata": (apr(raw_meta=b"[]"), "object"),
    "a JSON key twice": (apr(raw_meta=b'{"name": "a", "name": "b"}'), "'name' stands there twice"),
    "a size in words": (apr(META | {"hidden_size": "4"}), "hidden_size"),
    "a size that is not whole": (apr(META | {"num_layers": 1.5}), "num_layers"),
    "a negative size": (apr(META | {"num_heads": -1}), "num_heads"),
    "a size that is true": (apr(META | {"num_heads": True}), "num_heads"),
    "a number beyond float32": (apr(META | {"rope_theta": 1e300}), "rope_theta"),
    "a vocabulary with a number in it": (apr(META | {"tokenizer.vocabulary": ["a", 1]}), "tokenizer.vocabulary"),
    "a vocabulary that is a text": (apr(META | {"tokenizer.vocabulary": "abc"}), "tokenizer.vocabulary"),
    "an object gguf that is a list": (apr(META | {"gguf": [1]}), "gguf"),
    "a type that GGUF lacks": (apr(META | {"gguf": {"x": {"type": "INT128", "value": 1}}}), "INT128"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_must_be_rejected_is_and_the_fact_named(name, tmp_path):
    data, word = REFUSED[name]
    with pytest.raises(FileError) as caught:
        opened(tmp_path, data)
    assert word in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_too_much_metadata_is_refused_before_it_is_parsed(tmp_path):
    with pytest.raises(FileError, match="bytes of metadata"):
        opened(tmp_path, apr(raw_meta=b"{}" + b" " * (16 << 20)))


def test_a_file_cut_anywhere_is_refused_at_open(tmp_path):
    data = apr(tensors=(EMBEDDING, ("lm_head.weight", 1, (3, 4), F32[:24])))
    for size in (*range(1, len(data), 5), *range(len(data) - 70, len(data))):
        with pytest.raises(FileError):
            opened(tmp_path, data[:size])


def test_a_change_in_the_data_is_found_by_verify_and_only_there(tmp_path):
    data = bytearray(apr())
    data[-70] ^= 1
    model = opened(tmp_path, bytes(data))
    with pytest.raises(FileError, match="footer's checksum") as caught:
        model.verify()
    assert caught.value.code == 3


def test_flipped_bytes_open_or_are_refused_and_nothing_else(tmp_path):
    """The header's checksum is made right again, so that the damage behind it is met."""
    good = apr(META | {"gguf": {"a": {"type": "INT8", "value": 1}}, "tokenizer.vocabulary": ["a"]})
    rng, refused = np.random.default_rng(2), 0
    for _ in range(400):
        data = bytearray(good)
        for at in rng.integers(4, len(good), rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        data[40:44] = struct.pack("<I", zlib.crc32(bytes(data[44:64]), zlib.crc32(bytes(data[:40]))))
        try:
            model = opened(tmp_path, bytes(data))
            for name in model.keys:
                model.key(name)
        except FileError:
            refused += 1
    assert refused > 100, f"only {refused} of 400 damaged files were refused"


# --- what is written -------------------------------------------------------------------------------------------------


def written(meta, tensors, flags=0) -> bytes:
    """Write with the writer under test; tensors are (name, quant, shape, bytes)."""
    out = io.BytesIO()
    weights = [Weight(name, quant, shape, np.frombuffer(data, np.uint8)) for name, quant, shape, data in tensors]
    write_container(out, meta, [passthrough(weight) for weight in weights], flags)
    return out.getvalue()


def test_the_two_published_fixture_sizes_are_reproduced():
    tensors = (
        ("weights", "F32", (8,), np.array([1, 2, 0.5, -0.5, 4, -2, 0.25, 8], "<f4").tobytes()),
        ("bias", "F32", (1,), np.array([0.125], "<f4").tobytes()),
    )
    said = {
        "model_type": "linear_regression", "name": "golden-v2", "version": "0.0.0-golden", "created_at": "1700000000",
        "total_size": 0, "param_count": 8,
    }
    always = (
        "model_type", "name", "license", "data_source", "data_license", "version", "created_at", "total_size",
        "param_count",
    )
    every = (
        *always, "description", "author", "source", "original_format", "quantization", "sharding", "chat_template",
        "chat_format", "special_tokens", "architecture", "hf_architecture", "hf_model_type", "hidden_size",
        "num_layers", "num_heads", "num_kv_heads", "vocab_size", "intermediate_size", "max_position_embeddings",
        "rope_theta", "rope_type", "rms_norm_eps", "head_dim", "num_experts", "num_experts_per_tok",
        "moe_intermediate_size",
    )
    assert len(written({name: said.get(name) for name in always}, tensors)) == 516
    assert len(written({name: said.get(name) for name in every}, tensors)) == 1092


def test_the_writer_gives_the_bytes_that_the_layout_gives_by_hand():
    by_hand = (
        ("b", 0, (4,), F32[:16]), ("Z", 0, (4,), F32[16:32]), ("aé", 1, (3, 4), F32[:24]),
        ("a", 12, (1, 256), bytes(144)),
    )
    names = {0: "F32", 1: "F16", 12: "Q4_K"}
    meta = {"name": "x", "architecture": "qwen2"}
    ours = written(meta, [(name, names[code], shape, data) for name, code, shape, data in by_hand], flags=0x200)
    theirs = apr(raw_meta=json.dumps(meta, separators=(",", ":")).encode(), tensors=by_hand, flags=0x400 | 0x200 | 0x20)
    assert ours == theirs


@pytest.mark.parametrize(("gguf", "apr_name"), [
    ("token_embd.weight", "model.embed_tokens.weight"), ("output.weight", "lm_head.weight"),
    ("output_norm.weight", "model.norm.weight"), ("blk.0.attn_norm.weight", "model.layers.0.input_layernorm.weight"),
    ("blk.12.attn_k.bias", "model.layers.12.self_attn.k_proj.bias"),
    ("blk.3.attn_output.weight", "model.layers.3.self_attn.o_proj.weight"),
    ("blk.3.attn_q_norm.weight", "model.layers.3.self_attn.q_norm.weight"),
    ("blk.3.ffn_norm.weight", "model.layers.3.post_attention_layernorm.weight"),
    ("blk.3.ffn_down.weight", "model.layers.3.mlp.down_proj.weight"), ("rope_freqs.weight", "rope_freqs.weight"),
    ("blk.3.other.weight", "blk.3.other.weight"), ("blk.03.ffn_up.weight", "blk.03.ffn_up.weight"),
])
def test_tensor_names_are_turned_both_ways(gguf, apr_name):
    assert (apr_tensor(gguf), gguf_tensor(apr_name)) == (apr_name, gguf)


def test_a_gguf_file_is_not_read_as_apr(tmp_path):
    path = tmp_path / "x.apr"
    path.write_bytes(b"GGUF" + bytes(60))
    with pytest.raises(FileError, match=r"not an \.apr file"):
        read_apr(path)
