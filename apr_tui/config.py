"""Read what the user settled for every run: config.toml in the user's folder. A command line's own words come first.

    theme = "light"        # auto, dark, light or ansi
    threshold = 8          # ratio that makes a spike
    prompt = "Hello"       # what is fed where nothing else says it
    chat = true            # through the file's template
    mouse = false          # in the console; left out: on, but off over SSH

Nothing of it is run. It writes nothing.
"""

from __future__ import annotations

import argparse
import os
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_tui.options import nearest, read_theme, read_threshold
from core.system.errors import FileError, UsageError
from core.system.limits import CONFIG_BYTES
from core.system.paths import config_folder
from core.system.regular_file import read_text

FILE = "config.toml"
REPAIR = "Mend it, or take it away."


@dataclass(frozen=True, slots=True)
class Config:
    """What the user settled; None: nothing."""

    theme: str | None = None
    threshold: float | None = None
    prompt: str | None = None
    chat: bool | None = None
    mouse: bool | None = None


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise argparse.ArgumentTypeError("a text in quotes is needed")
    return value


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise argparse.ArgumentTypeError("true or false is needed")
    return value


def _ratio(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise argparse.ArgumentTypeError("a number above 1 is needed")
    try:
        return read_threshold(repr(float(value)))
    except OverflowError:
        raise argparse.ArgumentTypeError("the number is too large") from None


# key -> how its value is read; each is a field of Config
KEYS: dict[str, Callable[[object], Any]] = {
    "theme": lambda value: read_theme(_text(value)), "threshold": _ratio, "prompt": _text, "chat": _truth,
    "mouse": _truth,
}


def config_path() -> Path | None:
    """Where the file is looked for; None where no home is known."""
    folder = config_folder()
    return None if folder is None else folder / FILE


def read_config() -> Config:
    """Read the file, where there is one; UsageError names the file, the key and what is needed."""
    path = config_path()
    if path is None or not os.path.lexists(path):
        return Config()
    try:
        told = tomllib.loads(read_text(path, CONFIG_BYTES, REPAIR))
    except (FileError, ValueError, RecursionError) as error:  # ValueError: no TOML, or a number of 5000 digits
        said = f"{path} is no TOML: {error}. {REPAIR}"
        raise UsageError(str(error) if isinstance(error, FileError) else said) from None
    return Config(**{key: _read(path, key, value) for key, value in told.items()})


def _read(path: Path, key: str, value: object) -> Any:  # noqa: ANN401 (the key's own type)
    if key not in KEYS:
        meant = nearest(key, KEYS)
        raise UsageError(f"{path} has the key {key!a}, which is none of {', '.join(KEYS)}."
                         f"{f' Did you mean {meant}?' if meant else ''} {REPAIR}")
    try:
        return KEYS[key](value)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{path}, {key}: {error}. {REPAIR}") from None
