"""Read .npz, .npy and .safetensors files, or a folder of them, whose arrays are named: 3.ffn_out, a module's path.

An array of whole numbers named tokens, input_ids or token_ids says what was fed. A pickle is refused by name.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from core.sources.imports.array_bytes import AGAIN, PICKLES, SUFFIXES, UNPICKLE, Array, floats, read_arrays
from core.sources.imports.dump import Dump, trace_of_dump
from core.sources.imports.foreign_names import Hidden, Part, part_named
from core.sources.imports.stated_facts import Stated
from core.system.arrays import Floats32
from core.system.errors import FileError
from core.system.limits import STAGE_BYTES, TENSORS
from core.trace.record import Trace, is_token_id

TOKEN_NAMES = ("tokens", "input_ids", "token_ids")
COMPUTES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}  # what a module computes that puts out this type


def read_array_file(path: Path, stated: Stated) -> Trace:
    """Read one file of arrays; FileError, UsageError."""
    return trace_of_dump(collect("named arrays", None, read_arrays(path), path), path, stated)


def read_array_folder(folder: Path, stated: Stated) -> Trace:
    """Read every file of arrays in a folder; FileError, UsageError."""
    return trace_of_dump(collect("named arrays", None, arrays_of(array_files(folder)), folder), folder, stated)


def array_files(folder: Path) -> list[Path]:
    """The files of arrays in a folder, in order; FileError where a pickle is all there is, or names a pickle beside."""
    found = files_in(folder)
    pickles = [p for p in found if p.suffix.lower() in PICKLES]
    if pickles:
        raise FileError(f"{pickles[0].name} {UNPICKLE}.")
    return [p for p in found if p.suffix.lower() in SUFFIXES]


def files_in(folder: Path) -> list[Path]:
    """The regular files of a folder; FileError."""
    try:
        found = sorted(p for p in folder.iterdir() if p.is_file())
    except OSError as error:
        raise FileError(f"{folder.name} could not be read: {error.strerror}.") from error
    if len(found) > TENSORS or sum(p.stat().st_size for p in found if p.suffix.lower() in SUFFIXES) > STAGE_BYTES:
        raise FileError(f"{folder.name} holds more than {TENSORS} files or {STAGE_BYTES} bytes of arrays. {AGAIN}")
    return found


def arrays_of(files: Iterable[Path]) -> Iterator[tuple[str, Array, str]]:
    """The arrays of several files. A file of one array named data is known by its file's name."""
    for path in files:
        for name, x, dtype in read_arrays(path):
            yield (path.stem if name == "data" else name), x, dtype


def collect(kind: str, engine: str | None, arrays: Iterable[tuple[str, Array, str]], path: Path) -> Dump:
    """Sort arrays by what their names mean; FileError where two are one value."""
    parts: dict[Part | Hidden, Floats32] = {}
    tokens, left_out, dtypes = None, list[str](), set[str]()
    for name, x, dtype in arrays:
        part = part_named(name)
        if name.rpartition(".")[2] in TOKEN_NAMES and x.dtype.kind in "iu":
            tokens = token_ids(name, x)
        elif part is None:
            left_out.append(ascii(name)[1:-1])
        elif part in parts and parts[part].tobytes() == floats(name, x).tobytes():
            continue  # a module and the one inside it that makes its output
        elif part in parts:
            raise FileError(f"{path.name} has {name!a} twice, or under two names. {AGAIN}")
        else:
            parts[part] = floats(f"{path.name}, {name!a}", x)
            dtypes.add(dtype)
    one = next(iter(dtypes)) if len(dtypes) == 1 else None
    compute = COMPUTES.get(one or "") if engine is not None else None
    return Dump(kind, engine, parts, tokens, compute, one, left_out)


def token_ids(name: str, x: Array) -> tuple[int, ...]:
    """The ids of one sequence; FileError."""
    ids = tuple(int(n) for n in x.ravel()) if x.size <= 1 << 20 else ()
    if not ids or not all(map(is_token_id, ids)) or any(n != 1 for n in x.shape[:-1]):
        raise FileError(f"{name!a} has shape {list(x.shape)}; the token ids of one sequence were needed. {AGAIN}")
    return ids
