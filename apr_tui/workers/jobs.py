"""The jobs that the console gives its worker: what each of the session's verbs does. None touches a widget."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from apr_tui.cli.commands import normal_form
from apr_tui.request import Request
from apr_tui.session import GetSession
from apr_tui.workers.run import JobProgress
from core.system.atomic_folder import SIDES, TRACE

if TYPE_CHECKING:
    from apr_tui.session import Result
    from core.audit.audit_file import Audit
    from core.bundle.judged import Judged
    from core.damage.result import Damage
    from core.formats.model_file import ModelFile
    from core.proof.check_result import Check
    from core.proof.verdict import Bisection, Comparison
    from core.trace.finding import Finding
    from core.trace.look_inside import LayerView
    from core.trace.record import Trace


@dataclass(frozen=True, slots=True)
class Traced:
    """A finished trace, with the findings at a scope. model and path are None where a bundle was opened.

    judged: the verdict of the folder that was opened; the trace is its first side's.
    """

    trace: Trace
    findings: Sequence[Finding]
    scope: str
    path: Path | None = None
    model: ModelFile | None = None
    bundle: Path | None = None
    judged: Judged | None = None
    folder: Path | None = None


@dataclass(frozen=True, slots=True)
class Billed:
    """A folder of costs that was opened: a bill, or what kl found as text."""

    folder: Path
    bill: Damage | None
    text: str


def trace_job(request: Request, get_session: GetSession) -> Callable[[JobProgress], Traced | Billed]:
    """Open what the request names (or build the demonstration) and trace it; a bundle or a verdict is only read."""

    def job(progress: JobProgress) -> Traced | Billed:
        progress.say("starting")
        session = get_session()
        bundle, path, options = request.bundle, request.path, request.options
        if bundle is None and path is not None and session.is_bundle(path):
            bundle, path = path, None
        if bundle is not None:
            progress.say("reading the bundle", name=bundle.name)
            if session.is_cost(bundle):
                return Billed(bundle, session.open_bill(bundle), session.read_cost(bundle, as_json=False))
            judged, folder = None, None
            if session.is_judged(bundle):
                judged, folder = session.open_judged(bundle), bundle
                bundle = next(p for part in (*SIDES, TRACE) if os.path.isdir(p := bundle / part))
            found = session.open_bundle(bundle)
            known = found.facts.scopes or (options.scope,)
            scope = options.scope if options.scope in known else known[0]
            hints = session.hints(found, scope, options.threshold)
            return Traced(found, hints, scope, bundle=bundle, judged=judged, folder=folder)
        if path is None:
            progress.say("building the demonstration (once)", name="demo")
            path = session.ensure_demo()[0]
        progress.say("opening the file", name=path.name)
        model = None if request.settings.scheme else session.open_model(path)
        if model is not None:
            facts = session.arch_facts(model)
            progress.emit_depth(facts.n_layer)
            progress.say("loading torch", name=path.name, arch=facts.name, model=model)
        # the screen shows any scope, also one that this prompt has no token of
        trace = session.trace(request.source(path), request.prompt, replace(options, scope="all"), emit=progress.emit,
                              cancelled=progress.cancelled)
        progress.say("looking for spikes")
        return Traced(trace, session.hints(trace, options.scope, options.threshold), options.scope, path, model)

    return job


def hints_job(
    trace: Trace, scope: str, threshold: float, get_session: GetSession,
) -> Callable[[JobProgress], Sequence[Finding]]:
    """Find the hints at another scope."""
    return lambda progress: get_session().hints(trace, scope, threshold)


def pair_job(request: Request, a: Path, b: Path, get_session: GetSession) -> Callable[[JobProgress], Comparison]:
    """Judge b against a; the planted bug, if any, is A's."""

    def job(progress: JobProgress) -> Comparison:
        progress.say(f"comparing {a.name} with {b.name}")
        return get_session().compare(request.source(a), request.clean_source(b), request.prompt, request.options,
                                     emit=progress.emit, cancelled=progress.cancelled)

    return job


def bisect_job(request: Request, a: Path, b: Path, get_session: GetSession) -> Callable[[JobProgress], Bisection]:
    """Judge b against a and prove the cause by grafts; the planted bug, if any, is A's."""

    def job(progress: JobProgress) -> Bisection:
        progress.say(f"bisecting {a.name} and {b.name}")
        return get_session().bisect(request.source(a), request.clean_source(b), request.prompt, request.options,
                                    emit=progress.emit, cancelled=progress.cancelled)

    return job


def check_job(request: Request, path: Path, get_session: GetSession) -> Callable[[JobProgress], Check]:
    """Check every stage of a model file against float64."""

    def job(progress: JobProgress) -> Check:
        progress.say(f"checking {path.name} against float64")
        return get_session().check(request.source(path), request.prompt, request.options, emit=progress.emit,
                                   cancelled=progress.cancelled)

    return job


def view_job(request: Request, path: Path, layer: int, get_session: GetSession) -> Callable[[JobProgress], LayerView]:
    """Look into one layer of a model file's run."""

    def job(progress: JobProgress) -> LayerView:
        return get_session().layer_view(request.source(path), request.prompt, layer, emit=progress.emit,
                                        cancelled=progress.cancelled)

    return job


def damage_job(request: Request, path: Path, get_session: GetSession) -> Callable[[JobProgress], Damage]:
    """Bill each tensor of a model file with what its rounding costs."""

    def job(progress: JobProgress) -> Damage:
        source = replace(request.source(path), compute="f32", plant=None)
        return get_session().damage(source, emit=progress.emit, cancelled=progress.cancelled)

    return job


def audit_job(path: Path, get_session: GetSession) -> Callable[[JobProgress], Audit]:
    """Audit a model file by itself."""

    def job(progress: JobProgress) -> Audit:
        progress.say(f"auditing {path.name}")
        return get_session().audit(path, progress.cancelled)

    return job


def export_job(
    shown: Result, out: Path, force: bool, request: Request, command: str, get_session: GetSession,
) -> Callable[[JobProgress], Path]:
    """Write a trace, a check, a comparison or a bisection to a folder."""

    def job(progress: JobProgress) -> Path:
        progress.say(f"writing {out}")
        verb, *words = shlex.split(command)[1:]
        if verb == "damage":
            get_session().write_cost(out, shown, (Path(words[0]).name, None), force=force, command=command,
                                     repeat=normal_form(verb, words))
            return out
        return get_session().export(shown, out, request.options, force=force, command=command,
                                    repeat=normal_form(verb, words))

    return job
