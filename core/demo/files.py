"""Write the demonstration pair, demo.gguf and demo.apr, and keep one in the user's cache. Its making: weights.py.

A fault (faults/byte_faults.py) is planted in the .apr alone, and the file says so.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from core.demo.weights import demo_model
from core.faults.byte_faults import plant_byte_fault
from core.formats.apr_writer import write_apr
from core.formats.gguf_writer import write_gguf
from core.formats.open_model import open_model
from core.system.atomic_file import refuse_existing
from core.system.atomic_folder import make_parents, remove_empty
from core.system.errors import AprError, OutputError, os_reason
from core.system.paths import cache_folder, is_own, make_own

NAMES = ("demo.gguf", "demo.apr")


def write_demo(folder: Path, fault: str | None = None, force: bool = False) -> tuple[Path, Path]:
    """Write the pair into folder and return both paths.

    Errors: UsageError for an unknown fault, or a file that exists without force; OutputError for the folder.
    """
    model = demo_model()
    paired = replace(model, keys={**model.keys, "apr.rope_type": 2})
    other = paired if fault is None else plant_byte_fault(paired, fault)
    gguf, apr = folder / NAMES[0], folder / NAMES[1]
    for path in (gguf, apr):
        refuse_existing(path, force)
    try:
        made = make_parents(folder)
    except OSError as error:
        raise OutputError(f"{folder} could not be made: {error.strerror}. Give another folder with --out.") from error
    try:
        write_gguf(gguf, model, force=force)
        write_apr(apr, other, force=force)
    except BaseException:
        remove_empty(made)
        raise
    return gguf, apr


def demo_folder() -> Path:
    """Return the folder where the demonstration is kept: the user's cache, under this version's name."""
    try:
        return cache_folder() / f"demo-{version('apr-tui')}"
    except PackageNotFoundError:  # run from a checkout that was never installed
        return cache_folder() / "demo-source"


def ensure_demo() -> tuple[Path, Path]:
    """Return the kept pair, built where it is absent or broken; in a temporary folder where the cache is read-only."""
    folder = demo_folder()
    if not _is_whole(folder):
        try:
            make_own(folder)
            write_demo(folder, force=True)  # each file is replaced at once, so that a second process finds whole ones
        except (AprError, OSError):
            spare = _spare_folder()
            atexit.register(shutil.rmtree, spare, ignore_errors=True)
            return write_demo(Path(spare))
    return folder / NAMES[0], folder / NAMES[1]


def _spare_folder() -> str:
    try:
        return tempfile.mkdtemp(prefix="apr-tui-demo-")
    except OSError as error:
        raise OutputError(f"the demonstration could not be written, neither to {demo_folder()} nor to the temporary "
                          f"folder: {os_reason(error)}. Free some space, or name a model file.") from error


def _is_whole(folder: Path) -> bool:
    """True where both files are ours alone and open; a file that was cut fails its bounds."""
    try:
        if not all(is_own(folder / name) for name in NAMES):
            return False
        for name in NAMES:
            open_model(folder / name)
    except (AprError, OSError):
        return False
    return True
