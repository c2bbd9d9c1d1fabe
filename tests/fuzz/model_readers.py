"""Rows of model files: opened, audited, told from another, beside what they were made from."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np

from core.audit.audit_file import audit_file
from core.audit.file_pair import file_diff
from core.audit.original import compare_with_original
from core.formats.apr_writer import write_apr
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.session.prepare import open_once
from core.system.cancel import never
from core.text.chat_sandbox import _reply as render_template
from core.text.tokenizer import open_tokenizer
from tests.audit.original_families import make, write
from tests.fuzz.reader import Make, Reader, written
from tests.support.builders import tiny_vocab
from tests.support.small_models import write_model

TEMPLATE = "{% for m in messages %}{{ m['role'] | upper }}: {{ m['content'] }}\n{% endfor %}{{ eos_token }}"
DOCUMENTS = {
    "tokenizer.json": '{"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 3}, "merges": [["a", "b"]]}, '
                      '"added_tokens": [{"id": 2, "content": "<s>", "special": true, "single_word": false, '
                      '"lstrip": false, "rstrip": false, "normalized": false}], "pre_tokenizer": null}',
    "tokenizer_config.json": '{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ x }}", '
                             '"add_bos_token": true, "added_tokens_decoder": {"2": {"content": "<s>"}}}',
    "generation_config.json": '{"eos_token_id": [1, 2], "temperature": 0.6}',
    "special_tokens_map.json": '{"eos_token": {"content": "</s>"}}',
    "chat_template.jinja": TEMPLATE,
    "model.safetensors.index.json": '{"metadata": {}, "weight_map": {"a": "model.safetensors"}}',
}


def open_whole(path: Path) -> object:
    """Open a model as a run does: every key, the tokenizer, the architecture's sizes."""
    opened = open_once(path)
    for name in opened.file.keys:
        opened.file.key(name)
    return open_tokenizer(opened.file).encode("ab 12"), opened.file.types_text()


def gguf(folder: Path) -> Path:
    """A model of one narrow layer."""
    return write_model(folder / "m.gguf", tokenizer="bpe", n_layer=1, d_model=16, n_head=2, n_kv_head=1, d_ff=16)


def _spelled(kind: str) -> Make:
    """A model whose tokenizer is of that kind, its vocabulary SentencePiece's."""
    model = tiny_vocab("spm")
    merges = [f"{t[0]} {t[1:]}" for t in model["tokenizer.ggml.tokens"] if t in ("he", "ll")]
    keys = {"tokenizer.ggml.model": kind, "tokenizer.ggml.merges": merges}
    if kind == "rwkv":
        keys |= {"tokenizer.ggml.tokens": [f"\\x{i:02x}" for i in range(128)], "tokenizer.ggml.token_type": [1] * 128}
    if kind == "t5":
        keys["tokenizer.ggml.precompiled_charsmap"] = [0, 4, 0, 0, *bytes(1024)]
    return lambda folder: write_model(folder / "m.gguf", tokenizer="spm", n_layer=1, d_model=16, n_head=2, n_kv_head=1,
                                      d_ff=16, keys=keys)


def _part(folder: Path) -> Path:
    """The first of two files that are one model."""
    from gguf import GGUFWriter

    for i in range(2):
        part = GGUFWriter(str(folder / f"m-{i + 1:05d}-of-00002.gguf"), "qwen2", use_temp_file=False)
        part.add_uint16("split.no", i)
        part.add_uint16("split.count", 2)
        part.add_int32("split.tensors.count", 2)
        part.add_tensor(f"blk.{i}.attn_norm.weight", np.ones(32, np.float32))
        part.write_header_to_file()
        part.write_kv_data_to_file()
        part.write_tensors_to_file()
        part.close()
    return folder / "m-00001-of-00002.gguf"


def _apr(folder: Path) -> Path:
    write_apr(folder / "m.apr", open_model(gguf(folder)))
    return folder / "m.apr"


def _open_apr(path: Path) -> object:
    file = open_model(path)
    assert file.verify is not None
    open_whole(path)
    file.verify()
    return read_arch(file)


def _mend_apr(data: bytes) -> bytes:
    if len(data) < 68:
        return data
    head = data[:40] + struct.pack("<I", zlib.crc32(data[44:64], zlib.crc32(data[:40]))) + data[44:64]
    return head + data[64:-4] + struct.pack("<I", zlib.crc32(data[64:-4], zlib.crc32(head)))


def _audit(path: Path) -> object:
    """Audit it, and tell it from the good one, which is written beside it at first."""
    other = path.with_name("other.gguf")
    if not other.exists():
        other.write_bytes(path.read_bytes())
    return audit_file(path), file_diff(open_model(path), open_model(other))


def _original(name: str) -> Make:
    def made(folder: Path) -> Path:
        _, original = write(make("llama", 1), folder)
        for each, text in DOCUMENTS.items():
            if each == name or each != "model.safetensors.index.json":
                (original / each).write_text(text)
        return original / name

    return made


def _beside_original(path: Path) -> object:
    return compare_with_original(next(path.parents[1].glob("*.gguf")), path.parent, cancel=never)


MODELS: dict[str, Reader] = {
    "gguf": Reader(gguf, open_whole),
    **{f"gguf {kind}": Reader(_spelled(kind), open_whole, each_run=300)
       for kind in ("llama", "gemma4", "t5", "bert", "rwkv")},
    "gguf in parts": Reader(_part, lambda p: open_model(p).types_text()),
    "apr": Reader(_apr, _open_apr, _mend_apr),
    "audit": Reader(gguf, _audit, each_run=50),
    **{f"original {name}": Reader(_original(name), _beside_original, each_run=30)
       for name in ("config.json", "model.safetensors", *DOCUMENTS)},
    "chat template": Reader(written("t.jinja", TEMPLATE), lambda p: render_template(
        {"template": p.read_text(errors="replace"), "text": "a", "bos_token": "b", "eos_token": "e"}), each_run=300),
}
