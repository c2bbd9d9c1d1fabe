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
from core.sources.imports.stated_facts import Stated, check_stated
from core.sources.imports.wide_csv import read_wide_csv
from core.system.errors import FileError
from core.system.limits import IMPORT_BYTES
from core.system.regular_file import read_file
from core.trace.record import Trace

Reader = Callable[[str, Path, Stated], Trace]
READERS: tuple[tuple[str, re.Pattern[str], Reader], ...] = (  # in this order; the pattern is looked for in the text
    ("the JSON of `apr trace --payload --json`", re.compile(r"^[^\S\n]*+\{", re.MULTILINE), read_apr_json),
    ("the text of `apr trace --payload`", re.compile(r"^LAYER-BY-LAYER|^[^\S\n]*+Layer +[0-9]+/", re.MULTILINE),
     read_apr_text),
    ("a table with a column layer", re.compile(r'\A\s*+([^\n]*,)?[^\S\n]*+"?layer"?[^\S\n]*+(,|$)', re.MULTILINE),
     read_wide_csv),
)  # no pattern may try white space twice: a file of blank lines would take minutes
_ESCAPES = re.compile(r"\x1b\[[0-9;:?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)")


def import_trace(
    path: Path, *, scope: str | None = None, tokens: Sequence[int] | None = None, definition: str | None = None,
) -> Trace:
    """Read a trace text, its JSON, a folder of APRT stage files or a table of stds.

    scope, tokens, definition: what the file does not say. What nobody says stays unknown, and the notes list it.
    Errors: FileError (names the line and what was expected), UsageError (an option that contradicts the file).
    """
    stated = check_stated(scope, tokens, definition)
    if path.is_dir():
        return read_aprt_folder(path, stated)
    data = _read(path)
    text = _ESCAPES.sub("", _decode(path, data)).replace("\r\n", "\n")
    for _, pattern, reader in READERS:
        if pattern.search(text):
            trace = reader(text, path, stated)
            origin = {**trace.origin, "imported_from": path.name, "sha256": hashlib.sha256(data).hexdigest()}
            return replace(trace, origin=origin)
    forms = ", ".join(form for form, _, _ in READERS)
    raise FileError(f"{path.name} is no trace that this build imports: {forms}, a folder of APRT stage files.")


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
