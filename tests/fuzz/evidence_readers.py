"""Rows of what apr-tui itself has written: bundles, verdicts, costs, the state of a run of kl, what lies in the cache.

A sum that a changed file no longer has is set right for each mutant, so that what stands behind it is read too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from apr_tui.cli.output import judged_text, saved_text, trace_json
from core.bundle import costs, junit
from core.bundle.judged import read_judged
from core.bundle.reader import read_bundle
from core.damage.kl import TokenKl
from core.damage.result import Damage, TensorDamage
from core.damage.run_kl import ChunkStore
from core.formats import identity
from core.kernels.cpu import build
from core.proof.check_result import Check
from core.proof.ladder_cache import _read as read_ladder
from core.proof.verdict import Bisection, Comparison, LayerBisection, PatchResult, Verdict
from core.session.costs import is_cost
from core.session.evidence import export
from core.system import paths
from core.system.atomic_folder import strange_in
from core.trace.hints import find_hints
from core.trace.measures import Difference, LocalError, State
from core.trace.record import Trace
from core.trace.request import RunOptions
from core.trace.stats import Factors, Massive, peaks_of
from tests.fuzz.reader import Make, Reader
from tests.support.bundles import save
from tests.support.traces import cells_of, trace_of, values

PLACE = (0, "ffn_swigl")
BUNDLE = ("manifest.json", "stats.csv", "tokens.csv", "findings.json", "values.safetensors")


def _trace() -> Trace:
    """A trace of one layer and two tokens with all that a manifest can say."""
    x = values(2, n_layer=1, width=8)
    x[0, "qkv"][1, 4] = np.nan
    cells = cells_of(x, 2)
    cells[PLACE] = replace(cells[PLACE], peaks=peaks_of(
        ((4, 0, 150.5),), Massive(0.05, ((0, 4, 150.5),)), Factors(0, 4, 12.5, 12.0, -0.75)))
    kept = {PLACE: x[PLACE], (0, "ffn_out"): torch.from_numpy(x[0, "ffn_out"]).bfloat16()}
    return trace_of(cells, 2, generated="4", values=kept)


def _bundle(name: str) -> Make:
    return lambda folder: save(_trace(), folder / "b", keep=True) / name


def _open_bundle(path: Path) -> object:
    """Read a bundle as `show --text` and --json do, with its values."""
    _mend_sum(path)
    trace = read_bundle(path.parent)
    shapes = [trace.values[place].shape for place in trace.values or ()]
    scope = (trace.facts.scopes or ("all",))[0]
    options = RunOptions(scope=scope)
    return shapes, saved_text(trace, options, as_json=False), trace_json(trace, scope, find_hints(trace, scope=scope))


def _mend_sum(path: Path) -> None:
    """Set the sum of a file right in the manifest beside it, unless that is what was changed."""
    manifest = path.with_name("manifest.json")
    if path != manifest:
        told = json.loads(manifest.read_bytes())
        told["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest.write_text(json.dumps(told))


def _pair() -> Comparison:
    error = LocalError(0.5, 1e-15, 1, 4, "it is 2 times too large")
    cells = {PLACE: Difference(float("inf"), float("nan"), 12.5, 1, 4, 0.0, 0.25, 1e-6, State.DIFFERS)}
    trace = replace(_trace(), values=None)
    return Comparison(Verdict.H2, ("a reason",), trace, replace(trace, name="b.gguf"), "all", PLACE, 1, 4, "B", 0.25,
                      1e-6, error, cells, files=("a key differs",))


def _check() -> Check:
    return Check(replace(_trace(), values=None), {PLACE: LocalError(0.25, 1e-15, 1, 3, "it is 1.5 times too large")})


def _bisection() -> Bisection:
    return Bisection(_pair(), LayerBisection(0.5, (PatchResult(PLACE, 0.0, 1.0),), 0))


def _verdict(make: Callable[[], Check | Comparison | Bisection], name: str) -> Make:
    return lambda folder: export(make(), folder / "v") / name


def _open_verdict(path: Path) -> object:
    _mend_sum(path)
    judged = read_judged(path.parent)
    strange_in(path.parent)
    return [judged_text(judged, as_json=as_json) for as_json in (False, True)]


def _cost(name: str) -> Make:
    def make(folder: Path) -> Path:
        found = Damage("own block steps", "a text", 0.5, None, 0.0, (TensorDamage("t", 0, "Q4_0", 18, 0.5, 1.0),))
        costs.write_damage(folder / "d", found, ("m.gguf", None), force=False, command="x", repeat="x")
        return folder / "d" / name

    return make


def _open_cost(path: Path) -> object:
    _mend_sum(path)
    is_cost(path.parent)
    return [costs.open_bill(path.parent), *(costs.read_cost(path.parent, as_json=as_json) for as_json in (False, True))]


def _state(name: str) -> Make:
    def make(folder: Path) -> Path:
        ChunkStore.begin(folder / "k", "a").write(0, TokenKl(*np.zeros((5, 3))))
        return folder / "k" / name

    return make


def _read_state(path: Path) -> object:
    return ChunkStore.begin(path.parent, "a").read(0, 3)


def _cached(folder: str, name: str, text: str) -> Make:
    """A file of the cache; where that is, stands in the environment from now on."""
    def make(home: Path) -> Path:
        os.environ["XDG_CACHE_HOME"] = str(home)
        path = paths.make_own(paths.cache_folder() / folder) / name
        path.write_text(text)
        return path

    return make


def _read_digest(path: Path) -> object:
    """The digest that is kept of a path, where the mutant itself is what is kept."""
    usual, identity._home = identity._home, lambda path: path
    try:
        return identity._kept(path)
    finally:
        identity._home = usual


def _junit(path: Path) -> Path:
    junit.write_junit(path, [_check()])
    return path


def _is_whole(path: Path) -> object:
    library = path.with_suffix(".so")
    library.write_bytes(b"no library")
    return build._is_whole(library)


EVIDENCE: dict[str, Reader] = {
    **{f"bundle {name}": Reader(_bundle(name), _open_bundle, each_run=30) for name in BUNDLE},
    **{f"{kind} {name}": Reader(_verdict(make, name), _open_verdict, each_run=30)
       for kind, make in (("comparison", _pair), ("check", _check), ("bisection", _bisection))
       for name in ("judged.json", "manifest.json")[:2 if kind == "check" else 1]},
    **{f"cost {name}": Reader(_cost(name), _open_cost) for name in ("damage.json", "report.txt", "manifest.json")},
    **{f"kl {name}": Reader(_state(name), _read_state) for name in ("0.f64", "state-of-kl")},
    "junit": Reader(lambda folder: _junit(folder / "j.xml"), lambda p: junit.validate_junit(p, force=False)),
    "kept digest": Reader(_cached("d", "d.json", '{"stamp": [1, 2, 3], "digest": "blake2b:00"}'), _read_digest),
    "kept rungs": Reader(_cached("d", "l.jsonl", '["1.qkv", 0.5]\n' * 3), read_ladder),
    "kept kernels": Reader(_cached("kernels", "x.sha256", "0" * 64), _is_whole, each_run=300),
}

