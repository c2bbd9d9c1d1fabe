"""Every function that opens a file to read it, and the rows that fuzz it: one that is in no row is not to be merged.

A value is a row of READERS, whose reading of the good file must come by; or a sentence that says why nothing hostile
can stand there. Found by the calls below, in the sources.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
CALLS = {"read_file", "read_text", "read_bytes", "open_file", "map_file", "refuse_irregular", "safe_open", "load_file",
         "open", "memmap", "fromfile", "ZipFile", "from_file", "guard_data", "fdopen"}
MAYBE = re.compile(rf"\b(?:{'|'.join(CALLS)})\(")
NO_FILE = {"os.open", "webbrowser.open"}
OWN = {"core/system/regular_file.py", "core/system/mapped_file.py"}  # the readers that all others call
DOORS = {
    "apr_tui/cli/launch.py:read_option": "prompt file",
    "apr_tui/config.py:read_config": "user's config",
    "apr_tui/recent.py:recent": "recent files",
    "apr_tui/render/status.py:memory_text": "of /proc",
    "core/audit/conversion/original.py:_read": "original config.json",
    "core/audit/conversion/safetensors_file.py:read_safetensors": "original model.safetensors",
    "core/bundle/costs.py:read_cost": "cost damage.json",
    "core/bundle/costs.py:write_kl": "chunks that ChunkStore.read has just held to their sums",
    "core/bundle/judged.py:read_judged": "comparison judged.json",
    "core/system/atomic_file.py:refuse_foreign": "junit",
    "core/bundle/reader.py:_bytes": "bundle manifest.json",
    "core/damage/corpus.py:read_corpus": "corpus of kl",
    "core/damage/run_kl.py:begin": "kl state-of-kl",
    "core/damage/run_kl.py:_read": "kl 0.f64",
    "core/formats/apr_reader.py:read_apr": "apr",
    "core/formats/gguf_reader.py:_read_part": "gguf",
    "core/formats/identity.py:_kept": "kept digest",
    "core/formats/open_model.py:open_model": "gguf",
    "core/kernels/cpu/build.py:_is_whole": "kept kernels",
    "core/kernels/cpu/build.py:_digest": "kept kernels",
    "core/kernels/cpu/build.py:_compile_alone": "a note in the cache, which must be ours alone: it is shown, escaped",
    "core/kernels/cpu/build.py:_object_file": "the package's own sources",
    "core/kernels/cpu/instruction_sets.py:processor_flags": "of /proc",
    "core/proof/ladder_cache.py:_read": "kept rungs",
    "core/sources/engines/process.py:last_lines": "engine's log.txt",
    "core/sources/engines/process.py:_lines_since": "engine's progress.txt",
    "core/sources/engines/process.py:_read_answer": "engine's answer.json",
    "core/sources/engines/process.py:read_ask": "engine's ask.json",
    "core/sources/engines/trace.py:_vocab_size": "engine's config.json",
    "core/sources/engines/trace.py:_open_tokenizer": "engine's tokenizer.json",
    "core/sources/imports/aprt.py:_header": "stage files",
    "core/sources/imports/aprt.py:values": "stage files",
    "core/sources/imports/array_bytes.py:read_arrays": "npy",
    "core/sources/imports/array_bytes.py:_npz": "npz",
    "core/sources/imports/array_bytes.py:_unpacked": "npz",
    "core/sources/imports/array_bytes.py:_safetensors": "safetensors",
    "core/sources/imports/open_trace.py:_read": "apr trace text",
    "core/system/atomic_folder.py:strange_in": "comparison judged.json",
    "core/system/rests.py:began": "of /proc",
    "core/trace/values_file.py:open_values": "bundle values.safetensors",
    "core/trace/values_file.py:_read": "bundle values.safetensors",
    "core/trace/values_file.py:_read_bfloat16": "bundle values.safetensors",
    "core/train/checkpoint.py:read_checkpoint": "checkpoint state.json",
    "core/train/config.py:read_preset": "config",
    "core/train/data/corpus.py:raw": "corpus",
    "core/train/data/corpus.py:_text_bytes": "corpus",
    "core/train/data/shards.py:_read_manifest": "shards manifest.json",
    "core/train/data/shards.py:_map": "shards train-00000.bin",
    "core/train/data/vocabulary.py:read_vocabulary": "vocabulary vocab.json",
    "core/train/log.py:read_document": "run run.json",
    "core/train/log.py:read": "run train.jsonl",
}


def found_doors() -> set[str]:
    """Every function of the program that opens a file to read, as path:function."""
    paths = (p for folder in ("core", "apr_tui") for p in (ROOT / folder).rglob("*.py"))
    texts = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    return {f"{name}:{function}" for name, text in texts.items() if name not in OWN and MAYBE.search(text)
            for function in _readers_of(ast.parse(text))}


def _readers_of(tree: ast.Module) -> Iterator[str]:
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef) and any(map(_is_door, _calls_of(function))):
            yield function.name


def _calls_of(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """Its own calls: not those of a function inside it."""
    left: list[ast.AST] = [*ast.iter_child_nodes(function)]
    while left:
        node = left.pop()
        if not isinstance(node, ast.FunctionDef):
            left += ast.iter_child_nodes(node)
        if isinstance(node, ast.Call):
            yield node


def _is_door(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in CALLS or ast.unparse(call.func) in NO_FILE:
        return False
    words = [word.value for word in (*call.args, *(k.value for k in call.keywords)) if isinstance(word, ast.Constant)]
    return not (name in ("open", "fdopen") and {"w", "a", "x", "wb", "ab", "xb"} & {*map(str, words)}) \
        and "devnull" not in ast.unparse(call)
