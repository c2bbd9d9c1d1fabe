"""Open a model file by its first bytes, whatever its name. The formats themselves: gguf_file, apr_file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from core.formats.apr_reader import read_apr
from core.formats.gguf_reader import read_gguf
from core.formats.model_file import ModelFile
from core.system.errors import FileError
from core.system.mapped_file import map_file

READERS: dict[bytes, Callable[[Path], ModelFile]] = {
    b"GGUF": read_gguf,
    b"APR\0": read_apr,
    b"APRN": read_apr,  # the older containers: read_apr names and refuses them
    b"APR1": read_apr,
    b"APR2": read_apr,
}
OTHERS = {  # what people open by mistake
    b"PK\x03\x04": "a zip archive (perhaps a PyTorch checkpoint)",
    b"\x1f\x8b": "a gzip archive",
    b"APRT": "an APRT stage dump",
    b"ggml": "an old ggml file",
    b"ggjt": "an old ggml file",
}
DOWNLOADS = {  # what a download leaves under a model's name -> what it is, and what to do
    b"version https://git-lfs": ("a Git LFS pointer, some lines that stand for the model",
                                 "Fetch the model itself: git lfs pull, or download it again."),
    b"<!doctype html": ("a web page", "The download failed, or asked for a login; download the file itself again."),
    b"<html": ("a web page", "The download failed, or asked for a login; download the file itself again."),
    b"<?xml": ("an XML document, perhaps a server's error", "The download failed; download the file again."),
    b'{"error': ("a server's error", "The download failed, or asked for a login; download the file again."),
}


def open_model(path: Path) -> ModelFile:
    """Open a .gguf or .apr file; FileError where there is none, or it is something else."""
    data = map_file(path)
    magic = bytes(data[:4])
    reader = READERS.get(magic)
    if reader is not None:
        return reader(path)
    if len(magic) < 4 and any(known.startswith(magic) for known in READERS):
        raise FileError(f"{path.name} is cut short: it has {len(magic)} bytes. Copy or download it again.")
    begin = bytes(data[:64]).lstrip().lower()
    for start, (what, repair) in DOWNLOADS.items():
        if begin.startswith(start):
            raise FileError(f"{path.name} is not a model but {what}. {repair}")
    guess = next((what for begin, what in OTHERS.items() if magic.startswith(begin)), None)
    if guess is None and bytes(data[8:9]) == b"{":
        guess = "probably a safetensors file"
    found = f"it is {guess}" if guess else f"it begins with {magic!r}"
    raise FileError(f"{path.name} is not a model that this build reads: {found}. Convert it to GGUF or .apr v2.")
