"""Hold the readers of other tools' dumps to real runs: python -m tests.readers_suite FILE.gguf [--faults 200]
[--mutants 1000] [--form NAME].

FILE (such as stories260K) runs in llama.cpp and in transformers by themselves; what their tools write is imported.
Faults are planted in the foreign run, at every stage that a form shows, and must be named at their place: values by
`check`, statistics by `compare`. A clean dump must name nothing. A dump that is cut or altered must never AGREE or PASS
unless what is read of it is the same, and must never be an internal error. Prints a table; exit 1 below the bars.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from core import session
from core.model.stages import Place, place_text
from core.proof.judge_pair import judge_saved
from core.proof.measure_pair import CompareOptions
from core.proof.verdict import Verdict
from core.sources.imports.open_trace import import_trace
from core.system.cancel import never
from core.system.errors import AprError
from core.system.outcome import Outcome
from core.trace.events import no_emit
from core.trace.record import Trace
from core.trace.request import Prompt, RunOptions, Source
from tests.fuzz.mutants import mutate
from tests.support.foreign_dumps import write_rows
from tests.support.foreign_runs import (
    MODULES,
    NODES,
    WHOLE,
    Fault,
    LlamaCpp,
    load_transformers,
    run_debugger,
    run_recipe,
    with_fault,
    write_imatrix,
)

IDS = (1, 203, 207, 261, 178, 185, 101, 135, 112, 263)
ASK = CompareOptions("all", 10.0, no_emit, never, False)
NEEDED = 0.95  # of the faults, at their place


def _at(x: np.ndarray, index: Any, value: Any) -> np.ndarray:
    out = x.copy()
    out[index] = value
    return out


FAULTS: dict[str, Fault] = {
    "scale": lambda x: x * 1.5, "negate": lambda x: -x, "offset": lambda x: x + 0.2 * np.sqrt(np.square(x).mean()),
    "nan": lambda x: _at(x, (..., -1, 0), np.nan), "shift": lambda x: np.roll(x, 1, -1),
    "zero-channel": lambda x: _at(x, (..., 0), 0.0), "stale": lambda x: np.roll(x, 1, -2),
}
ALL, BY_MOMENT = tuple(FAULTS), ("scale", "negate", "offset", "nan")  # mean and std do not see where a value stands


@dataclass(frozen=True, slots=True)
class Form:
    """One form of a dump. share: of the faults; kinds: what can be seen in it; stages: where; has_values: check it."""

    share: int
    kinds: tuple[str, ...]
    stages: tuple[str, ...]
    has_values: bool
    engine: str


OF_MODULES = (*MODULES, "output", *WHOLE)
FORMS = {
    "README's recipe, .npz": Form(50, ALL, OF_MODULES, True, "transformers"),
    "debugger, .safetensors": Form(40, ALL, OF_MODULES, True, "transformers"),
    "debugger, printed": Form(30, BY_MOMENT, tuple(s for s in OF_MODULES if s not in ("qkv", "logits")), False,
                              "transformers"),
    "rows of statistics": Form(20, BY_MOMENT[:3], OF_MODULES, False, "transformers"),
    "llama-eval-callback log": Form(50, (*BY_MOMENT, "shift", "stale"), tuple(NODES), False, "llama.cpp"),
    "importance matrix": Form(10, ("scale",), ("attn_norm", "ffn_norm", "ffn_swigl"), False, "llama.cpp"),
}


@dataclass(slots=True)
class Bench:
    """A model in three engines, and what came of it. own: the project's trace, beside which statistics are judged."""

    model: Path
    folder: Path
    forms: dict[str, Form] = field(default_factory=lambda: FORMS)
    own: Trace = field(init=False)
    n_layer: int = field(init=False)
    llama: LlamaCpp = field(init=False)
    hf: Any = field(init=False)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.own = session.trace(Source(self.model, threads=1), Prompt(tokens=IDS), RunOptions(keep_values=True))
        engines, self.n_layer = {form.engine for form in self.forms.values()}, self.own.n_layer
        if "llama.cpp" in engines:
            self.llama = LlamaCpp(self.model)
        if "transformers" in engines:
            self.hf = load_transformers(self.model)

    def dump(self, form: str, place: Place | None = None, fault: Fault | None = None) -> Path:
        """Run the form's engine, with a fault where asked, and write what its tool writes."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        if FORMS[form].engine == "llama.cpp":
            node = "" if place is None else NODES[place[1]].format(place[0])
            text = self.llama.run(IDS, node, fault, every=form == "importance matrix")
            if form == "importance matrix":
                return write_imatrix(self.folder / "imatrix.gguf", self.llama.squares)
            (self.folder / "log.txt").write_text(text)
            return self.folder / "log.txt"
        undo = with_fault(self.hf, place, fault) if place is not None and fault is not None else lambda: None
        try:
            if form.startswith("debugger"):
                return run_debugger(self.hf, IDS, self.folder, use_repr=form.endswith("printed"))
            path = run_recipe(self.hf, IDS, self.folder)
        finally:
            undo()
        if form == "rows of statistics":
            found = import_trace(path, model=self.model)
            return write_rows(self.folder / "rows.jsonl", found.values or {}, IDS)
        return path

    def open(self, form: str, path: Path) -> Trace:
        """Import a dump as a person would."""
        stated = form == "importance matrix"
        return import_trace(path, model=self.model, tokens=IDS if stated else None, scope="all" if stated else None,
                            definition="sample" if stated else None)

    def judge(self, form: str, path: Path) -> tuple[str, Place | None]:
        """The verdict and the place that are said of a dump."""
        found = self.open(form, path)
        if not FORMS[form].has_values:
            pair = judge_saved(self.own, found, ASK)
            return pair.verdict, pair.first
        bundle = self.folder / "bundle"
        session.export(found, bundle, force=True)
        check = session.check(Source(bundle, threads=1), None, model=self.model)
        return check.verdict, check.first


def cases(bench: Bench, n: int, seed: int = 0) -> Iterator[tuple[str, str, Place]]:
    """Form, kind and place of each fault, every form by its share."""
    draw, total = random.Random(seed), sum(f.share for f in bench.forms.values())
    for name, form in bench.forms.items():
        places = [(None if stage in WHOLE else layer, stage) for stage in form.stages
                  for layer in range(1 if stage in WHOLE else bench.n_layer)]
        every = [(kind, place) for kind in form.kinds for place in places]
        yield from ((name, *case) for case in draw.sample(every, min(len(every), round(n * form.share / total))))


def plant(bench: Bench, n: int) -> None:
    """Every clean dump, then every fault; says what was not named at its place."""
    for form in bench.forms:
        verdict, first = bench.judge(form, bench.dump(form))
        bench.counts[form, "clean, named nothing" if first is None else "clean, WRONG"] += 1
        if first is not None:
            print(f"  {form}, clean: {verdict} at {place_text(first)}", flush=True)
    for form, kind, place in cases(bench, n):
        verdict, first = bench.judge(form, bench.dump(form, place, FAULTS[kind]))
        bench.counts[form, "at its place" if first == place else "ELSEWHERE" if first else "MISSED"] += 1
        if first != place:
            print(f"  {form}, {kind}@{place_text(place)}: {verdict} at {place_text(first) if first else None}",
                  flush=True)


def alter(bench: Bench, n: int, seed: int = 0) -> None:
    """Cut and alter clean dumps; none may AGREE or PASS unless it reads as the clean one does."""
    for form in bench.forms:
        path, draw = bench.dump(form), random.Random(f"{seed} {form}")
        keep = bench.folder.parent / "clean"
        shutil.rmtree(keep, ignore_errors=True)
        shutil.copytree(bench.folder, keep)
        clean = bench.open(form, path)
        files = [p for p in sorted(keep.rglob("*")) if p.is_file() and "SUMMARY" not in p.name]
        for i in range(-(-n // len(bench.forms))):
            file = draw.choice(files)
            good = file.read_bytes()
            bad = mutate(good, draw) if i % 3 else good[:draw.randrange(len(good))]
            target = bench.folder / file.relative_to(keep)
            target.write_bytes(bad)
            bench.counts[form, fate(bench, form, path, clean)] += 1
            target.write_bytes(good)


def fate(bench: Bench, form: str, path: Path, clean: Trace) -> str:
    """What becomes of an altered dump."""
    try:
        verdict, first = bench.judge(form, path)
        found = bench.open(form, path)
    except AprError as error:
        return "altered, INTERNAL" if error.code == 70 else "altered, refused"
    except Exception as error:  # noqa: BLE001 (that is what is looked for)
        print(f"  {form}: {type(error).__name__}: {error}", flush=True)
        return "altered, INTERNAL"
    if verdict not in (Verdict.AGREE, Verdict.H1, Outcome.PASS):
        return "altered, named" if first else "altered, not proved"
    return "altered, reads the same" if is_near(clean, found) else "altered, AGREES"


def is_near(a: Trace, b: Trace) -> bool:
    """Whether all that is read is the same, or differs by less than rounding."""
    if set(a.cells) != set(b.cells) or [t.id for t in a.tokens] != [t.id for t in b.tokens]:
        return False
    for place in a.cells:
        x, y = (t.cells[place].at("all") or t.cells[place].at("last") for t in (a, b))
        if x is None or y is None:
            return False
        for name in ("mean", "std", "l2"):
            p, q = getattr(x, name), getattr(y, name)
            if (p is None) != (q is None) or (p is not None and abs(p - q) > 1e-4 * max(abs(p), x.std or 0, 1e-9)):
                return False
    return True


def table(counts: Counter[tuple[str, str]]) -> tuple[str, bool]:
    """The counts as text, and whether they hold the bars."""
    said = sorted({what for _, what in counts})
    lines = [f"{form:<26} {what:<24} {counts[form, what]:>5}" for form in FORMS for what in said if counts[form, what]]
    total = {what: sum(n for (_, w), n in counts.items() if w == what) for what in said}
    planted = sum(total.get(w, 0) for w in ("at its place", "ELSEWHERE", "MISSED"))
    altered = sum(n for w, n in total.items() if w.startswith("altered"))
    right = total.get("at its place", 0)
    wrong = sum(total.get(w, 0) for w in ("clean, WRONG", "altered, AGREES", "altered, INTERNAL"))
    share = right / planted if planted else 1.0
    lines += ["", f"{right} of {planted} faults at their place ({share:.1%}); {altered} altered dumps, "
              f"{total.get('altered, AGREES', 0)} agree, {total.get('altered, INTERNAL', 0)} internal errors; "
              f"{total.get('clean, WRONG', 0)} clean dumps accused"]
    return "\n".join(lines), share >= NEEDED and not wrong


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--faults", type=int, default=200)
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--form", choices=tuple(FORMS), help="this form alone")
    asked, started = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as name, quiet():
        bench = Bench(asked.file, Path(name) / "dump", {n: f for n, f in FORMS.items() if asked.form in (None, n)})
        plant(bench, asked.faults)
        alter(bench, asked.mutants)
    text, holds = table(bench.counts)
    print(f"{asked.file.name}, {len(IDS)} tokens\n{text}\n{time.monotonic() - started:.0f} s")
    return 0 if holds else 1


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Let llama.cpp's own log go nowhere: it writes to the process's stderr."""
    logging.disable(logging.WARNING)
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(nowhere)
        os.close(kept)


if __name__ == "__main__":
    sys.exit(main())
