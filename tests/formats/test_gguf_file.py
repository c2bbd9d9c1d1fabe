"""The GGUF reader: equal to gguf-py's where the file is good, and a clear refusal where it is not."""

import struct
import time
from pathlib import Path

import numpy as np
import pytest

from core.formats.gguf_reader import read_gguf
from core.formats.model_file import LazyArray
from core.formats.open_model import open_model
from core.system.errors import FileError
from tests.support.builders import write_tiny_gguf

SHARED = Path(__file__).parents[3] / "shared"
VOCABULARY = SHARED / "data" / "qwen2-vocab.gguf"
OPEN_SECONDS = 0.1  # the limit for any vocabulary; measured 0.04 here


def text(value: str) -> bytes:
    """Encode a GGUF string."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    """Encode a metadata key."""
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str = "a", dims: tuple[int, ...] = (4,), code: int = 0, offset: int = 0) -> bytes:
    """Encode a line of the tensor index."""
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, code, offset)


def gguf(
    keys: tuple[bytes, ...] = (), tensors: tuple[bytes, ...] = (), *, magic: bytes = b"GGUF", version: int = 3,
    n_key: int | None = None, n_tensor: int | None = None, data: int = 64,
) -> bytes:
    """Encode a whole file by hand."""
    n_tensor, n_key = len(tensors) if n_tensor is None else n_tensor, len(keys) if n_key is None else n_key
    head = magic + struct.pack("<IQQ", version, n_tensor, n_key) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


ARCH = key("general.architecture", 8, text("llama"))
HOSTILE = {  # what is wrong -> the file, and a word that the message must have
    "nothing but the magic": (b"GGUF", "cut short"),
    "another magic": (gguf(magic=b"GGUX"), "GGUF"),
    "big-endian": (gguf(version=0x03000000), "big-endian"),
    "version 1": (gguf(version=1), "version 1"),
    "version 4": (gguf(version=4), "version 4"),
    "2^63 tensors": (gguf(n_tensor=1 << 63), str(1 << 63)),
    "2^64 - 1 keys": (gguf(n_key=(1 << 64) - 1), str((1 << 64) - 1)),
    "a key longer than the file": (gguf((struct.pack("<Q", 1 << 62),), n_key=1), "cut short"),
    "a key of no letters": (gguf((key("", 4, bytes(4)),)), "empty"),
    "a key that is not UTF-8": (gguf((struct.pack("<Q", 2) + b"\xff\xfe" + bytes(8),)), "UTF-8"),
    "a key twice": (gguf((ARCH, ARCH)), "general.architecture"),
    "a value type of 13": (gguf((key("x", 13, bytes(8)),)), "type 13"),
    "a string longer than the file": (gguf((key("x", 8, struct.pack("<Q", (1 << 64) - 1)),)), "cut short"),
    "an array of arrays": (gguf((key("x", 9, struct.pack("<IQ", 9, 1) + bytes(12)),)), "array of arrays"),
    "an array of 2^61 numbers": (gguf((key("x", 9, struct.pack("<IQ", 10, 1 << 61)),)), "cut short"),
    "an array of 2^61 strings": (gguf((key("x", 9, struct.pack("<IQ", 8, 1 << 61)),)), "cut short"),
    "a string in an array that leads past the end": (
        gguf((key("x", 9, struct.pack("<IQQ", 8, 2, 1 << 60) + bytes(30)),)), "cut short",
    ),
    "alignment 0": (gguf((key("general.alignment", 4, struct.pack("<I", 0)),)), "alignment is 0"),
    "alignment 48": (gguf((key("general.alignment", 4, struct.pack("<I", 48)),)), "alignment is 48"),
    "alignment in words": (gguf((key("general.alignment", 8, text("32")),)), "alignment is '32'"),
    "no dimensions": (gguf((ARCH,), (tensor(dims=()),)), "0 dimensions"),
    "nine dimensions": (gguf((ARCH,), (tensor(dims=(1,) * 9),)), "9 dimensions"),
    "a dimension of 0": (gguf((ARCH,), (tensor(dims=(4, 0)),)), "dimension of 0"),
    "dimensions whose product overflows": (gguf((ARCH,), (tensor(dims=(1 << 32, 1 << 32, 4)),)), "cut short"),
    "an unknown type": (gguf((ARCH,), (tensor(code=99),)), "type id 99"),
    "rows that are no whole blocks": (gguf((ARCH,), (tensor(dims=(100, 2), code=12),)), "Q4_K"),
    "an offset outside": (gguf((ARCH,), (tensor(offset=1 << 40),)), "cut short"),
    "an offset off the alignment": (gguf((ARCH,), (tensor(offset=4),)), "alignment"),
    "a tensor twice": (gguf((ARCH,), (tensor(), tensor(offset=32))), "twice"),
    "two tensors on one place": (gguf((ARCH,), (tensor("a"), tensor("b"))), "overlaps"),
    "a split without its name": (gguf((ARCH, key("split.count", 2, struct.pack("<H", 3)))), "one of 3 parts"),
    "a split count in words": (gguf((ARCH, key("split.count", 8, text("3")))), "split.count"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_with_the_fact_named(name, tmp_path):
    data, word = HOSTILE[name]
    path = tmp_path / "x.gguf"
    path.write_bytes(data)
    with pytest.raises(FileError, match=word.replace("[", r"\[")) as caught:
        open_model(path)
    assert caught.value.code == 3 and "\n" not in str(caught.value)


def test_a_name_from_a_file_reaches_a_message_without_control_codes(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf((ARCH,), (tensor("\x1b[2J\u202e", code=99),)))
    with pytest.raises(FileError) as caught:
        open_model(path)
    assert str(caught.value).isprintable(), str(caught.value)


@pytest.mark.parametrize(("arch", "quant"), [("llama", "F32"), ("qwen2", "Q4_K"), ("qwen3", "Q8_0"), ("qwen2", "BF16")])
def test_keys_types_shapes_and_bytes_equal_those_of_gguf_py(arch, quant, tmp_path):
    import gguf as gguf_py

    path = write_tiny_gguf(tmp_path / "x.gguf", arch, d_model=256, d_ff=256, quant=quant, tokenizer="bpe")
    model, theirs = open_model(path), gguf_py.GGUFReader(path)
    fields = {name: field for name, field in theirs.fields.items() if not name.startswith("GGUF.")}
    assert {name: model.key(name) for name in model.keys} == {name: field.contents() for name, field in fields.items()}
    assert model.types == {name: field.types[0].name for name, field in fields.items()}
    assert list(model.weights) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        weight = model.weights[tensor.name]
        assert (weight.quant, weight.shape) == (tensor.tensor_type.name, tuple(map(int, reversed(tensor.shape))))
        assert weight.data.tobytes() == tensor.data.tobytes(), tensor.name


def test_version_2_reads_as_version_3(tmp_path):
    path = write_tiny_gguf(tmp_path / "x.gguf", tokenizer="spm")
    third = open_model(path)
    data = bytearray(path.read_bytes())
    data[4] = 2
    path.write_bytes(data)
    second = open_model(path)
    assert {name: second.key(name) for name in second.keys} == {name: third.key(name) for name in third.keys}
    assert second.header_sha256 != third.header_sha256


def test_every_scalar_and_array_type_is_read(tmp_path):
    kinds = {
        0: ("B", 200), 1: ("b", -3), 2: ("H", 60000), 3: ("h", -300), 4: ("I", 1 << 31), 5: ("i", -5), 6: ("f", 0.5),
        7: ("?", True), 10: ("Q", 1 << 63), 11: ("q", -(1 << 62)), 12: ("d", 0.1),
    }
    keys = [key(f"s{kind}", kind, struct.pack("<" + code, value)) for kind, (code, value) in kinds.items()]
    for kind, (code, value) in kinds.items():
        keys.append(key(f"a{kind}", 9, struct.pack(f"<IQ2{code}", kind, 2, value, value)))
    keys.append(key("text", 9, struct.pack("<IQ", 8, 2) + text("ä") + text("")))
    path = tmp_path / "x.gguf"
    path.write_bytes(gguf(tuple(keys)))
    model = read_gguf(path)
    for kind, (_, value) in kinds.items():
        assert model.key(f"s{kind}") == value and model.key(f"a{kind}") == [value, value], kind
        assert type(model.key(f"a{kind}")[0]) is type(value), kind
    assert model.key("text") == ["ä", ""]


def test_a_file_cut_anywhere_is_refused(tmp_path):
    path = write_tiny_gguf(tmp_path / "x.gguf", d_model=32, d_ff=32, n_vocab=8, tokenizer="bpe")
    data, cut = path.read_bytes(), tmp_path / "cut.gguf"
    rng = np.random.default_rng(0)
    for size in (1, 3, 4, 7, 23, 24, len(data) - 1, *rng.integers(0, len(data), 150)):
        cut.write_bytes(data[:size])
        with pytest.raises(FileError):
            open_model(cut)


def test_flipped_bytes_open_or_are_refused_and_nothing_else(tmp_path):
    path = write_tiny_gguf(tmp_path / "x.gguf", d_model=32, d_ff=32, n_vocab=8, n_layer=1, tokenizer="spm")
    good, bad = path.read_bytes(), tmp_path / "bad.gguf"
    header = len(good) - sum(len(weight.data) for weight in open_model(path).weights.values())
    rng, refused = np.random.default_rng(1), 0
    for _ in range(300):
        data = bytearray(good)
        for at in rng.integers(0, header, rng.integers(1, 4)):
            data[at] = rng.integers(0, 256)
        bad.write_bytes(data)
        try:
            model = open_model(bad)
            for name in model.keys:
                model.key(name)
        except FileError:
            refused += 1
    assert refused > 20, f"only {refused} of 300 damaged headers were refused"


@pytest.mark.skipif(not VOCABULARY.exists(), reason="the shared vocabulary is not here")
def test_a_vocabulary_of_152_000_tokens_opens_in_a_tenth_of_a_second():
    times = []
    for _ in range(5):
        start = time.process_time()  # its own: the machine may be another's just now
        model = open_model(VOCABULARY)
        times.append(time.process_time() - start)
    tokens = model.keys["tokenizer.ggml.tokens"]
    assert isinstance(tokens, LazyArray) and tokens.count == 151936
    assert min(times) < OPEN_SECONDS, f"{min(times):.3f} s; {OPEN_SECONDS} s allowed"


def split(folder: Path) -> list[Path]:
    """Write a model in three parts."""
    import gguf as gguf_py

    writer = gguf_py.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=2)
    for i in range(5):
        writer.add_tensor(f"t{i}", np.full((2, 4), i, np.float32))
    writer.add_uint32("llama.block_count", 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-*.gguf"))


def test_a_split_model_opens_as_one_from_any_part(tmp_path):
    parts = split(tmp_path)
    assert len(parts) == 3
    models = [open_model(path) for path in parts]
    for path, model in zip(parts, models, strict=True):
        assert model.path == path and list(model.weights) == [f"t{i}" for i in range(5)]
        assert model.weights["t4"].data.view(np.float32)[0] == 4
        assert model.keys == {"general.architecture": "llama", "llama.block_count": 1}
        assert model.size_bytes == sum(part.stat().st_size for part in parts)
    assert len({model.header_sha256 for model in models}) == 1


def test_a_missing_part_is_named(tmp_path):
    parts = split(tmp_path)
    parts[1].unlink()
    with pytest.raises(FileError, match=r"m-00002-of-00003\.gguf is missing"):
        open_model(parts[2])


def test_a_part_of_another_model_is_refused(tmp_path):
    parts = split(tmp_path)
    parts[1].write_bytes(parts[2].read_bytes())
    with pytest.raises(FileError, match="is part 2 of 3; 1 of 3"):
        open_model(parts[0])


@pytest.mark.parametrize(("content", "word"), [
    (None, "does not exist"), (b"", "empty"), (b"GG", "cut short"), (b"PK\x03\x04 and more", "zip"),
    (b"hello world", "b'hell'"), (b"APRT" + bytes(20), "stage dump"),
    (struct.pack("<Q", 40) + b'{"__metadata__":{}}', "safetensors"),
])
def test_what_is_no_model_is_refused_and_said(content, word, tmp_path):
    path = tmp_path / "x.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=word):
        open_model(path)


def test_a_folder_and_a_device_are_refused(tmp_path):
    with pytest.raises(FileError, match="folder"):
        open_model(tmp_path)
    with pytest.raises(FileError, match="regular file"):
        open_model(Path("/dev/zero"))


def test_pages_that_are_let_go_are_read_again_and_other_memory_keeps_its_bytes(tmp_path):
    from core.system.mapped_file import drop_pages, map_file

    path, own = tmp_path / "bytes", np.arange(40_000, dtype=np.uint8)
    path.write_bytes(own.tobytes())
    mapped = map_file(path)
    for part in (mapped, mapped[5_000:30_000], mapped[10:20], own, own[4_096:20_000]):
        before = part.tobytes()
        drop_pages(part)
        assert part.tobytes() == before
