"""A session that gives traces made of small arrays, and ways to drive a screen and read it as text. No model; torch
where something of it is asked for alone: a process of the console's tests starts in a third of the time without.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
import threading
import unicodedata
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from apr_tui import recent, style
from apr_tui.app import Console
from apr_tui.options import record_of
from apr_tui.request import Request
from apr_tui.screens import check as check_screen
from apr_tui.screens import compare as compare_screen
from apr_tui.screens import trace as trace_screen
from core.audit.audit_file import Audit
from core.damage.result import Damage
from core.model.stages import place_order
from core.proof.verdict import Comparison, Verdict
from core.system.errors import Cancelled, FileError
from core.system.progress import Phase
from core.trace.events import CellMeasured, Start
from core.trace.hints import find_hints
from core.trace.measures import Difference, SideName, State
from core.trace.record import NextToken, Token, Trace
from core.trace.request import Prompt, RunOptions, Source
from core.trace.stats import Factors, peaks_of
from tests.support.traces import FACTS, cells_of, values

SCREENS = Path(__file__).parents[1] / "golden" / "screens"
WORDS = ("What", " is", " ", "2", "+", "2", "?")
WIDTH = 64
ESCAPE = "\x1b]0;owned\x07\x1b[2J"  # a file's text that would steer a terminal


def spiky_trace(n_layer: int = 28, seed: int = 0, words: tuple[str, ...] = WORDS, **more: object) -> Trace:
    """A trace whose layer 3 has one massive value of token 0 in ffn_swigl, carried on by the residual."""
    made = _spiky(n_layer, seed, words)
    return replace(made, **({"cells": dict(made.cells)} | more))


@cache  # measuring it takes longer than many a test
def _spiky(n_layer: int, seed: int, words: tuple[str, ...]) -> Trace:
    arrays = values(len(words), n_layer, WIDTH, seed)
    if n_layer > 3:
        arrays[3, "ffn_swigl"][0, 12] = 300.0
        for layer in range(3, n_layer):
            arrays[layer, "output"][0, 5] = 320.0
        arrays[3, "ffn_out"][0, 5] = 310.0
    cells = dict(cells_of(arrays, len(words)))
    for place, array in arrays.items():
        best = np.unravel_index(np.argsort(-np.abs(array), axis=None)[:3], array.shape)
        top = tuple((int(c), int(t), float(array[t, c])) for t, c in zip(*best, strict=True))
        factors = Factors(0, 12, 15.0, 20.0, 0.31) if place == (3, "ffn_swigl") else None
        cells[place] = replace(cells[place], peaks=peaks_of(top, None, factors, cells[place].first))
    tokens = tuple(Token(100 + i, word) for i, word in enumerate(words))
    top = (NextToken(7, " 4", 11.5), NextToken(8, "4", 9.25))
    facts = replace(FACTS, n_layer=n_layer)
    ordered = dict(sorted(cells.items(), key=lambda cell: place_order(cell[0])))
    return Trace("tiny.gguf", facts, tokens, ordered, top=top, observed_equals_unobserved=True)


@dataclass(frozen=True, slots=True)
class FakeArch:
    """What arch_facts gives."""

    name: str = "qwen2"
    n_layer: int = 28


@dataclass
class FakeSession:
    """The session's calls on a ready trace. stop_at: the run waits there until go is set, or it is cancelled."""

    traced: Trace = field(default_factory=spiky_trace)
    comparison: Comparison | None = None
    audited: Audit | None = None
    bill: Damage | None = None
    stop_bill: bool = False
    stop_at: tuple[int, str] | None = None
    fail: Exception | None = None
    sibling_path: Path | None = Path("tiny.apr")
    go: threading.Event = field(default_factory=threading.Event)
    calls: list[tuple] = field(default_factory=list)

    def open_model(self, path):
        """Remember the path."""
        if self.fail is not None:
            raise self.fail
        return path

    def arch_facts(self, model):
        """Depth and name."""
        return FakeArch(n_layer=self.traced.facts.n_layer or 0)

    def trace(self, source, prompt, options, *, emit, cancelled):
        """Emit each cell of the ready trace."""
        self.calls.append(("trace", source, prompt))
        emit(Start(self.traced.facts.n_layer, self.traced.tokens))
        emit(Phase("tracing"))
        self._emit(emit, cancelled, self.traced, "")
        return self.traced

    def compare(self, a, b, prompt, options, *, emit, cancelled):
        """Emit both sides and give the ready comparison."""
        self.calls.append(("compare", a, b))
        assert self.comparison is not None
        emit(Start(self.comparison.a.n_layer, ()))
        for side, traced in ((SideName.A, self.comparison.a), (SideName.B, self.comparison.b)):
            self._emit(emit, cancelled, traced, side)
        return self.comparison

    def _emit(self, emit, cancelled, traced, side):
        for place, cell in traced.cells.items():
            if place == self.stop_at:
                while not self.go.wait(0.005):
                    if cancelled():
                        raise Cancelled("cancelled")
            emit(CellMeasured(place, cell, side))

    def hints(self, trace, scope, threshold=10.0):
        """The real rules."""
        return find_hints(trace, scope=scope, threshold=threshold)

    def is_bundle(self, path):
        """A folder called bundle is one."""
        return path.name in ("bundle", "verdict", "costs")

    def is_judged(self, path):
        """A folder called verdict is one; what it holds is the ready comparison."""
        return path.name == "verdict"

    def open_judged(self, path):
        """The ready comparison."""
        return self.comparison

    def layer_view(self, source, prompt, layer, *, emit, cancelled):
        """Two heads, each token at itself or at the first; one value far out."""
        import torch

        from core.trace.look_inside import LayerView, histogram

        self.calls.append(("layer_view", layer))
        eye, first = np.eye(7, dtype=np.float32), np.zeros((7, 7), np.float32)
        first[:, 0] = 1
        values = torch.cat((torch.linspace(-1, 1, 447), torch.tensor([300.0])))
        return LayerView(layer, {"ffn_swigl": histogram(values)}, np.stack((eye, first)), self.traced.top)

    def open_bundle(self, path):
        """The ready trace."""
        return replace(self.traced, name="from-bundle")

    def export(self, result, out, options, *, force, command, repeat):
        """Remember what was asked."""
        self.exported_scope = options.scope
        kind = "" if isinstance(result, Trace) else f"_{type(result).__name__.lower()}"
        self.calls.append((f"export{kind}", out, force, command))
        return out

    def default_out(self, trace):
        """A fixed folder."""
        return Path("evidence/tiny-0123abcd")

    def sibling(self, path):
        """The other format's file."""
        return self.sibling_path

    def weights_behind(self, model, layer, stage):
        """One weight."""
        return [(f"blk.{layer}.{stage}.weight", "Q4_K", (64, 32))]

    def weight_spread(self, model, name):
        """A level in the middle of its siblings'."""
        from core.audit.spread import Spread

        return Spread(0.031, 0.012, 0.03, 0.044, 27, 0.2, tuple((i, 0.012 + 0.001 * i) for i in range(28)))

    def damage(self, source, *, emit, cancelled):
        """The ready bill, after it was cancelled where it stops."""
        emit(Phase("gradients of chunk 1 of 2", 1, 2))
        while self.stop_bill and not self.go.wait(0.005):
            if cancelled():
                raise Cancelled("cancelled")
        return self.bill

    def is_cost(self, path):
        """A folder called costs is one."""
        return path.name == "costs"

    def open_bill(self, path):
        """The ready bill."""
        return self.bill

    def read_cost(self, path, *, as_json):
        """Its text."""
        return "a text"

    def audit(self, path, cancelled):
        """The ready audit."""
        self.calls.append(("audit", path))
        return self.audited

    def ensure_demo(self):
        """No building here."""
        return Path("demo.gguf"), Path("demo.apr")


def pair(verdict: str = "H2", state: str = "differs", **more: object) -> Comparison:
    """A comparison of two traces of which B differs from 5.ffn_out on."""
    a = spiky_trace()
    other = {place: cell for place, cell in spiky_trace(seed=1).cells.items() if place[0] == 5}
    b = replace(a, name="tiny.apr", cells={**a.cells, **other})
    cells = {}
    for place in a.cells:
        late = place_order(place) >= place_order((5, "ffn_out"))
        cells[place] = Difference(
            0.25 if late else 3e-7, 0.97, 1.5, 2, 9, inherited=0.2 if late else 0.0,
            local=0.25 if place == (5, "ffn_out") else 2e-7, floor=2e-6, state=State(state) if late else State.SAME)
    reasons = ("blk.5.ffn_down.weight: 1 value of 2048 differs", "H3 was tried: no declared choice explains it")
    known: dict[str, object] = {
        "first": (5, "ffn_out"), "token": 2, "channel": 9, "side": SideName.B, "measured": 0.25, "floor": 2e-6,
        "cells": cells}
    return Comparison(Verdict(verdict), reasons, a, b, "all", **(known | more))


def request_of(path: Path | None = None, bundle: Path | None = None, **options: object) -> Request:
    """A request with these options, each by the field that it sets; prompt is the text."""
    told = SimpleNamespace(**options, **({"text": options["prompt"]} if "prompt" in options else {}))
    settings = record_of(Source, told, path=Path())
    return Request(path, bundle, settings, record_of(Prompt, told), record_of(RunOptions, told),
                   str(options.get("theme", "auto")))


def file_error() -> FileError:
    """What a damaged file gives."""
    return FileError("tiny.gguf is 5000 bytes; its tensors need 91231. It was cut short: copy it again.")


@contextlib.asynccontextmanager
async def console(
    monkeypatch: pytest.MonkeyPatch, fake: FakeSession, size: tuple[int, int] = (80, 24), *, ascii_only: bool = False,
    no_color: bool = False, ends: bool = True, **request: object,
) -> AsyncIterator[tuple[Console, object]]:
    """Run the console on a fake session; time and memory stand still. ends: wait for the first trace to end."""
    monkeypatch.setenv("APR_TUI_ASCII", "1" if ascii_only else "0")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", "1")
    for cached in (style.only_ascii, style.has_16_colours, style.style):
        cached.cache_clear()
    for module in (trace_screen, compare_screen, check_screen):
        monkeypatch.setattr(module, "seconds_text", lambda seconds, *_: "2.0 s" if seconds is not None else "")
    monkeypatch.setattr(Console, "memory", lambda self: "412 MiB")
    app = Console(request_of(**({"path": Path("tiny.gguf")} | request)), fake)
    with tempfile.TemporaryDirectory() as state:  # the user's own list of recent files stays as it is
        monkeypatch.setattr(recent, "state_folder", lambda: Path(state))
        async with app.run_test(size=size) as pilot:
            await until(pilot, lambda: app.worker.serial > 0)
            if ends:
                await until(pilot, lambda: app.owner is None)
            yield app, pilot
            fake.go.set()
    for cached in (style.only_ascii, style.has_16_colours, style.style):
        cached.cache_clear()


async def until(pilot: object, holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something holds; fail where it does not come to hold."""
    for _ in range(int(seconds / 0.01)):
        await pilot.pause()
        if holds():
            await pilot.pause()
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came to hold")


def lines_of(app: Console) -> list[str]:
    """The screen as lines of text."""
    return [strip.text.rstrip() for strip in app.screen._compositor.render_strips()]


def text_of(app: Console) -> str:
    """The screen as text."""
    return "\n".join(lines_of(app)) + "\n"


def styles_of(app: Console, text: str) -> set[str]:
    """Colours of the segments that hold the text."""
    found = set()
    for strip in app.screen._compositor.render_strips():
        for segment in strip:
            if text in segment.text and segment.style is not None and segment.style.color is not None:
                found.add(segment.style.color.name)
    return found


def assert_screen(app: Console, name: str) -> None:
    """Hold the screen to tests/screens/NAME.txt; APR_TUI_SCREENS=write writes it instead."""
    path, found = SCREENS / f"{name}.txt", text_of(app)
    if os.environ.get("APR_TUI_SCREENS") == "write":
        SCREENS.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    wanted = path.read_text(encoding="utf-8")
    assert found == wanted, f"{name}:\n{found}\nwanted:\n{wanted}"


def is_clean(text: str) -> bool:
    """Say whether no character of the text steers a terminal."""
    return all(unicodedata.category(c)[0] != "C" or c == "\n" for c in text)
