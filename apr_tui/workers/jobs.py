"""The jobs that the console gives its worker: trace, check, compare, bisect, export. None touches a widget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_tui.request import Request
from apr_tui.session import DoorSource
from apr_tui.workers.run import Feed

if TYPE_CHECKING:
    from core.formats.model_file import ModelFile
    from core.proof.verdict import Bisection, Check, Comparison
    from core.trace.finding import Finding
    from core.trace.record import Trace


@dataclass(frozen=True, slots=True)
class Traced:
    """A finished trace, with the findings at a scope. model and path are None where a bundle was opened."""

    trace: Trace
    findings: Sequence[Finding]
    scope: str
    path: Path | None = None
    model: ModelFile | None = None
    bundle: Path | None = None


def trace_job(request: Request, door_source: DoorSource) -> Callable[[Feed], Traced]:
    """Open what the request names (or build the demonstration) and trace it; a bundle is only read."""

    def job(feed: Feed) -> Traced:
        feed.say("starting")
        door = door_source()
        bundle, path = request.bundle, request.path
        if bundle is None and path is not None and door.is_bundle(path):
            bundle, path = path, None
        if bundle is not None:
            feed.say("reading the bundle", name=bundle.name)
            found = door.open_bundle(bundle)
            known = found.facts.scopes or (request.scope,)
            scope = request.scope if request.scope in known else known[0]
            return Traced(found, door.hints(found, scope, request.threshold), scope, bundle=bundle)
        if path is None:
            feed.say("building the demonstration (once)", name="demo")
            path = door.ensure_demo()[0]
        feed.say("opening the file", name=path.name)
        model = door.open_model(path)
        facts = door.arch_facts(model)
        feed.emit_depth(facts.n_layer)
        feed.say("loading torch", name=path.name, arch=facts.name, model=model)
        trace = door.trace(
            request.source(path, request.plant), request.prompt_record(), layers=request.layers,
            generate=request.generate, emit=feed.emit, cancelled=feed.cancelled,
        )
        feed.say("looking for spikes")
        return Traced(trace, door.hints(trace, request.scope, request.threshold), request.scope, path, model)

    return job


def hints_job(
    trace: Trace, scope: str, threshold: float, door_source: DoorSource,
) -> Callable[[Feed], Sequence[Finding]]:
    """Find the hints at another scope."""
    return lambda feed: door_source().hints(trace, scope, threshold)


def pair_job(request: Request, a: Path, b: Path, door_source: DoorSource) -> Callable[[Feed], Comparison]:
    """Judge b against a; the planted bug, if any, is A's."""

    def job(feed: Feed) -> Comparison:
        feed.say(f"comparing {a.name} with {b.name}")
        return door_source().compare(
            request.source(a, request.plant), request.source(b), request.prompt_record(), scope=request.scope,
            threshold=request.threshold, emit=feed.emit, cancelled=feed.cancelled,
        )

    return job


def bisect_job(request: Request, a: Path, b: Path, door_source: DoorSource) -> Callable[[Feed], Bisection]:
    """Judge b against a and prove the cause by grafts; the planted bug, if any, is A's."""

    def job(feed: Feed) -> Bisection:
        feed.say(f"bisecting {a.name} and {b.name}")
        return door_source().bisect(
            request.source(a, request.plant), request.source(b), request.prompt_record(), scope=request.scope,
            threshold=request.threshold, emit=feed.emit, cancelled=feed.cancelled,
        )

    return job


def check_job(request: Request, path: Path, door_source: DoorSource) -> Callable[[Feed], Check]:
    """Check every stage of a model file against float64."""

    def job(feed: Feed) -> Check:
        feed.say(f"checking {path.name} against float64")
        return door_source().check(
            request.source(path, request.plant), request.prompt_record(), generate=request.generate, emit=feed.emit,
            cancelled=feed.cancelled,
        )

    return job


def export_job(
    shown: Any, out: Path, force: bool, request: Request, command: str, door_source: DoorSource,  # noqa: ANN401
) -> Callable[[Feed], Path]:
    """Write a trace, a check, a comparison or a bisection to a folder."""

    def job(feed: Feed) -> Path:
        feed.say(f"writing {out}")
        door = door_source()
        if hasattr(shown, "ladder"):
            return door.export_bisection(shown, out, threshold=request.threshold, force=force, command=command)
        if hasattr(shown, "errors"):
            return door.export_check(shown, out, force=force, command=command)
        if hasattr(shown, "verdict"):
            return door.export_comparison(shown, out, threshold=request.threshold, force=force, command=command)
        return door.export_trace(
            shown, out, scope=request.scope, threshold=request.threshold, force=force, command=command,
        )

    return job
