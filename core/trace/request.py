"""Records of what to run or open and what to feed it, and their spelling on a command line. They open nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.model.stages import read_whole
from core.system.errors import UsageError
from core.system.limits import THREADS
from core.trace.engines import ENGINES


@dataclass(frozen=True, slots=True)
class Source:
    """Anything that yields a Trace: a model file with its settings, a saved bundle, another engine on a file."""

    path: Path
    scheme: str = ""      # of ENGINES; "" for this forward
    compute: str = "f32"  # a row of COMPUTES: f32, q8, bf16, f16
    device: str = "auto"  # auto, cpu, cuda, cuda:N
    threads: int | None = None
    plant: str | None = None  # KIND@LAYER.STAGE
    cache: str = "f32"        # a row of CACHE_TYPES that keys and values are kept in, or two as K/V


@dataclass(frozen=True, slots=True)
class Prompt:
    """What to feed: token ids if given, else text (through the file's template if chat)."""

    text: str = "What is 2+2?"
    tokens: tuple[int, ...] | None = None
    chat: bool = False


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How to trace, check or compare: what command line, console and session all know. Each call reads its own fields.

    scope: which tokens a number is taken over (all, last, first, rest, pos:N). threshold: the ratio that makes a spike.
    layers: watch A to B - 1 only. generate: tokens to go on with. keep_values: hold every stage's values in the trace.
    witness: run the same forward untraced beside it. identify: take the digest of the file's bytes meanwhile.
    """

    scope: str = "all"
    threshold: float = 10.0
    layers: tuple[int, int] | None = None
    generate: int = 0
    keep_values: bool = False
    witness: bool = True
    identify: bool = False


DEFAULTS = RunOptions()


SETTINGS = ("compute", "device", "threads", "cache")  # of a side


def write_source(source: Source, default: Source) -> str:
    """Write what parse_source reads back: what differs from the default is said."""
    told = [f"{key}={getattr(source, key)}" for key in SETTINGS if getattr(source, key) != getattr(default, key)]
    scheme, settings = f"{source.scheme}:" if source.scheme else "", f"@{','.join(told)}" if told else ""
    return f"{scheme}{source.path}{settings}"


def parse_source(text: str, default: Source) -> Source:
    """Read [SCHEME:]FILE[@key=value,...] with compute, device, threads, cache; the rest is the default's.

    A file whose own name holds @ or : is taken as it is where it exists.
    """
    if os.path.exists(text):  # Path.exists raises where a folder on the way may not be read
        return replace(default, path=Path(text), scheme="")
    scheme, colon, rest = text.partition(":")
    scheme, rest = (scheme, rest) if colon and scheme in ENGINES else ("", text)
    name, at, settings = rest.rpartition("@")
    if not at or "=" not in settings:
        return replace(default, path=Path(rest), scheme=scheme)
    changes: dict[str, Any] = {}
    for setting in settings.split(","):
        key, _, value = setting.partition("=")
        if key not in SETTINGS:
            raise UsageError(f"{text}: {key!r} is not a setting of a side. "
                             "Write FILE@compute=q8,device=cuda:0,threads=1,cache=q8_0.")
        if key == "threads" and not 0 < (read_whole(value) or 0) <= THREADS:
            raise UsageError(f"{text}: threads={value!r}; a number from 1 to {THREADS} is needed.")
        changes[key] = read_whole(value) if key == "threads" else value
    return replace(default, path=Path(name), scheme=scheme, **changes)
