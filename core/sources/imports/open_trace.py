"""Import another tool's trace: the bytes choose the reader. It reads no form itself: each has a file beside this."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from core.sources.imports.apr_json import read_apr_json
from core.sources.imports.apr_text import read_apr_text
from core.sources.imports.aprt import read_aprt_folder
from core.sources.imports.array_bytes import PICKLES, SUFFIXES, UNPICKLE
from core.sources.imports.array_folder import files_in, read_array_file, read_array_folder
from core.sources.imports.debugger_json import read_debugger_json
from core.sources.imports.imatrix import is_imatrix, read_imatrix
from core.sources.imports.llama_log import NODE_LINE, read_llama_log
from core.sources.imports.sglang import is_sglang, read_sglang_folder
from core.sources.imports.stated_facts import Stated, check_stated
from core.sources.imports.stated_model import open_stated, with_model
from core.sources.imports.statistic_rows import read_statistic_rows
from core.sources.imports.wide_csv import read_wide_csv
from core.system.errors import FileError
from core.system.limits import IMPORT_BYTES
from core.system.regular_file import read_file
from core.trace.record import Trace

Reader = Callable[[str, Path, Stated], Trace]
_FIRST = r"\A\s*+([^\n]*,)?[^\S\n]*+"
READERS: tuple[tuple[str, re.Pattern[str], Reader], ...] = (  # in this order; the pattern is looked for in the text
    ("a log of llama-eval-callback or llama-debug", NODE_LINE, read_llama_log),
    ("the JSON of transformers' model_addition_debugger", re.compile(r'\A\s*+\{\s*+"module_path"'), read_debugger_json),
    ("statistics as JSONL or a JSON list", re.compile(
        r'\A\s*+(\[\s*+)?\{[^{}\[]{0,400}"(stage|layer)"|\A\s*+\{\s*+"(tokens|scope|definition|engine)"[^\n]*+\n\s*+\{'),
     read_statistic_rows),
    ("the JSON of `apr trace --payload --json`", re.compile(r"^[^\S\n]*+\{", re.MULTILINE), read_apr_json),
    ("the text of `apr trace --payload`", re.compile(r"^LAYER-BY-LAYER|^[^\S\n]*+Layer +[0-9]+/", re.MULTILINE),
     read_apr_text),
    ("a table with the columns layer and stage", re.compile(
        r'\A\s*+(?=[^\n]{0,4000}\blayer\b)(?=[^\n]{0,4000}\bstage\b)[\w", \t]+\n'), read_statistic_rows),
    ("a table with a column layer", re.compile(_FIRST + r'"?layer"?[^\S\n]*+(,|$)', re.MULTILINE), read_wide_csv),
)  # no pattern may try white space twice: a file of blank lines would take minutes
FOLDERS = "a folder of APRT stage files, of .npz, .npy or .safetensors files, or of SGLang's dumps"
_ESCAPES = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def import_trace(
    path: Path, *, scope: str | None = None, tokens: Sequence[int] | None = None, definition: str | None = None,
    model: Path | None = None,
) -> Trace:
    """Read another tool's trace: a text, JSON, a table, an importance matrix, a file or folder of arrays.

    scope, tokens, definition: what the file does not say. model: the model file that was run; it says the rest. What
    nobody says stays unknown, and the notes list it.
    Errors: FileError (names the line and what was expected), UsageError (an option that contradicts the file).
    """
    stated = check_stated(scope, tokens, definition)
    if model is not None:
        stated = replace(stated, model=open_stated(model))
    trace = _read_folder(path, stated) if path.is_dir() else _read_one(path, stated)
    return trace if stated.model is None else with_model(trace, stated.model)


def _read_folder(folder: Path, stated: Stated) -> Trace:
    if is_sglang(folder):
        return read_sglang_folder(folder, stated)
    files = files_in(folder)
    trees = [p for p in files if p.name.endswith("_debug_tree_FULL_TENSORS.json")]
    if trees:
        return _read_one(trees[0], stated)
    kinds = {p.suffix.lower() for p in files}
    if kinds & {*SUFFIXES, *PICKLES} - {".bin"}:  # a .bin may be an APRT stage
        return read_array_folder(folder, stated)
    return read_aprt_folder(folder, stated)


def _read_one(path: Path, stated: Stated) -> Trace:
    kind = path.suffix.lower()
    if kind in PICKLES and kind != ".bin":
        raise FileError(f"{path.name} {UNPICKLE}.")
    if kind in SUFFIXES:
        return read_array_file(path, stated)
    if kind == ".gguf":
        if is_imatrix(path):
            return read_imatrix(path, stated)
        raise FileError(f"{path.name} is a model, no trace. Trace it: apr-tui trace {path.name}")
    data = _read(path)
    text = _ESCAPES.sub("", _decode(path, data)).replace("\r\n", "\n")
    for _, pattern, reader in READERS:
        if pattern.search(text):
            trace = reader(text, path, stated)
            origin = {**trace.origin, "imported_from": path.name, "sha256": hashlib.sha256(data).hexdigest()}
            return replace(trace, origin=origin)
    forms = ", ".join(form for form, _, _ in READERS)
    raise FileError(f"{path.name} is no trace that this build imports: {forms}, an importance matrix (GGUF), "
                    f"{FOLDERS}.")


def _read(path: Path) -> bytes:
    data = read_file(path, IMPORT_BYTES, "Give a trace to import.")
    if not data.strip():
        raise FileError(f"{path.name} is empty. Export the trace again.")
    if data[:4] == b"APRT":
        raise FileError(f"{path.name} is one APRT stage file. Give the folder that holds layer-0, layer-1 ...")
    return data


def _decode(path: Path, data: bytes) -> str:
    try:
        if 0 not in data:
            return data.decode("utf-8-sig")
        wrong = f"byte {data.index(0)} is zero"
    except UnicodeDecodeError as error:
        wrong = f"byte {error.start} is not UTF-8"
    raise FileError(f"{path.name} is not text: {wrong}. Give a trace's text, JSON or CSV.")
