"""What the console asks of core/session.py, as a protocol, and the request that it keeps. It loads no numpy.

core.session brings numpy, and a run brings torch: both are imported in the worker's thread, after the first screen.
"""

from __future__ import annotations

import importlib
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from core.formats.model_file import ModelFile
    from core.proof.verdict import Bisection, Check, Comparison
    from core.system.cancel import IsCancelled
    from core.trace.events import Emit
    from core.trace.finding import Finding
    from core.trace.record import Trace
    from core.trace.request import Prompt, Source

DEFAULT_PROMPT = "What is 2+2?"
WeightFacts = tuple[str, str, tuple[int, ...]]  # name, quant type, shape


class Door(Protocol):
    """The calls of core.session that the console makes; a test may give its own."""

    def open_model(self, path: Path) -> ModelFile: ...
    def arch_facts(self, model: ModelFile) -> Any: ...  # noqa: ANN401
    def trace(
        self, source: Source, prompt: Prompt, *, layers: tuple[int, int] | None = None, generate: int = 0,
        emit: Emit = ..., cancelled: IsCancelled = ...,
    ) -> Trace: ...
    def compare(
        self, a: Source, b: Source, prompt: Prompt | None, *, scope: str = "all", threshold: float = 10.0,
        emit: Emit = ..., cancelled: IsCancelled = ...,
    ) -> Comparison: ...
    def check(
        self, source: Source, prompt: Prompt | None, *, generate: int = 0, emit: Emit = ...,
        cancelled: IsCancelled = ...,
    ) -> Check: ...
    def bisect(
        self, a: Source, b: Source, prompt: Prompt | None, *, scope: str = "all", threshold: float = 10.0,
        emit: Emit = ..., cancelled: IsCancelled = ...,
    ) -> Bisection: ...
    def hints(self, trace: Trace, scope: str, threshold: float = 10.0) -> Sequence[Finding]: ...
    def is_bundle(self, path: Path) -> bool: ...
    def open_bundle(self, path: Path) -> Trace: ...
    def export_trace(
        self, trace: Trace, out: Path, *, scope: str, threshold: float, force: bool, command: str,
    ) -> Path: ...
    def export_comparison(
        self, comparison: Comparison, out: Path, *, threshold: float, force: bool, command: str,
    ) -> Path: ...
    def export_check(self, result: Check, out: Path, *, force: bool, command: str) -> Path: ...
    def export_bisection(
        self, result: Bisection, out: Path, *, threshold: float, force: bool, command: str,
    ) -> Path: ...
    def default_out(self, trace: Trace) -> Path: ...
    def sibling(self, path: Path) -> Path | None: ...
    def weights_behind(
        self, model: ModelFile, layer: int | None, stage: str,
    ) -> Sequence[WeightFacts]: ...
    def ensure_demo(self) -> tuple[Path, Path]: ...


@dataclass(frozen=True, slots=True)
class Request:
    """What the user asked to see. path None and bundle None: the built-in demonstration."""

    path: Path | None = None
    bundle: Path | None = None
    compute: str = "f32"
    device: str = "auto"
    threads: int | None = None
    plant: str | None = None
    prompt: str = DEFAULT_PROMPT
    tokens: tuple[int, ...] | None = None
    chat: bool = False
    layers: tuple[int, int] | None = None
    generate: int = 0
    scope: str = "all"
    threshold: float = 10.0

    def source(self, path: Path, plant: str | None = None) -> Source:
        """The record of a side that the door takes."""
        from core.trace.request import Source

        return Source(path, compute=self.compute, device=self.device, threads=self.threads, plant=plant)

    def prompt_record(self) -> Prompt:
        """The record of the prompt that the door takes."""
        from core.trace.request import Prompt

        return Prompt(self.prompt, self.tokens, self.chat)

    def command(self, verb: str, *paths: Path, scope: str) -> str:
        """Write the command that gives the same numbers without a screen, of the options that the verb takes."""
        from apr_tui.options import COMMANDS

        known = COMMANDS[verb][2]
        words = ["apr-tui", verb, *map(str, paths), *(["--text"] if verb == "show" else [])]
        tokens = None if self.tokens is None else ",".join(map(str, self.tokens))
        rows: tuple[tuple[str, object, object], ...] = (
            ("--tokens", tokens, None), ("--prompt", self.prompt if tokens is None else DEFAULT_PROMPT, DEFAULT_PROMPT),
            ("--compute", self.compute, "f32"), ("--device", self.device, "auto"), ("--threads", self.threads, None),
            ("--plant", self.plant, None), ("--scope", scope, "all"), ("--threshold", self.threshold, 10.0),
            ("--generate", self.generate, 0),
        )
        for option, now, usual in rows:
            if now != usual and option in known:
                words += [option, f"{now:g}" if isinstance(now, float) else str(now)]
        if self.chat and "--chat" in known:
            words.append("--chat")
        if self.layers is not None and "--layers" in known:
            words += ["--layers", f"{self.layers[0]}..{self.layers[1]}"]
        return shlex.join(words)


def write_prompt(text: str) -> str:
    """Write a prompt on one line."""
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def read_prompt(text: str) -> str:
    """Read what write_prompt wrote."""
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))


def typed_path(text: str | Path) -> Path:
    """Return the path that was typed, with ~ as a shell reads it: ~NAME of nobody stays as it is."""
    return Path(os.path.expanduser(text))


DoorSource = Callable[[], Door]


def real_door() -> Door:
    """Load core.session; the first call takes a tenth of a second, so the worker makes it."""
    return cast(Door, importlib.import_module("core.session"))
