"""What the console asks of core.session, as a protocol. It loads no numpy.

core.session brings numpy, and a run brings torch: both are imported in the worker's thread, after the first screen.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

if TYPE_CHECKING:
    from core.audit.audit_file import Audit
    from core.audit.spread import Spread
    from core.bundle.judged import Judged
    from core.damage.result import Damage
    from core.formats.model_file import ModelFile
    from core.proof.check_result import Check
    from core.proof.verdict import Bisection, Comparison
    from core.system.cancel import IsCancelled
    from core.trace.events import Emit
    from core.trace.finding import Finding
    from core.trace.look_inside import LayerView
    from core.trace.record import Trace
    from core.trace.request import Prompt, RunOptions, Source

    Result = Trace | Check | Comparison | Bisection | Damage


WeightFacts = tuple[str, str, tuple[int, ...]]  # name, quant type, shape


class SessionApi(Protocol):
    """The calls of core.session that the console makes; a test may give its own."""

    def open_model(self, path: Path) -> ModelFile: ...
    def arch_facts(self, model: ModelFile) -> Any: ...  # noqa: ANN401
    def trace(
        self, source: Source, prompt: Prompt, options: RunOptions = ..., *, emit: Emit = ...,
        cancelled: IsCancelled = ...,
    ) -> Trace: ...
    def compare(
        self, a: Source, b: Source, prompt: Prompt | None, options: RunOptions = ..., *, emit: Emit = ...,
        cancelled: IsCancelled = ...,
    ) -> Comparison: ...
    def check(
        self, source: Source, prompt: Prompt | None, options: RunOptions = ..., *, emit: Emit = ...,
        cancelled: IsCancelled = ...,
    ) -> Check: ...
    def bisect(
        self, a: Source, b: Source, prompt: Prompt | None, options: RunOptions = ..., *, emit: Emit = ...,
        cancelled: IsCancelled = ...,
    ) -> Bisection: ...
    def layer_view(
        self, source: Source, prompt: Prompt, layer: int, *, emit: Emit = ..., cancelled: IsCancelled = ...,
    ) -> LayerView: ...
    def hints(self, trace: Trace, scope: str, threshold: float = ...) -> Sequence[Finding]: ...
    def is_bundle(self, path: Path) -> bool: ...
    def open_bundle(self, path: Path) -> Trace: ...
    def is_judged(self, path: Path) -> bool: ...
    def open_judged(self, path: Path) -> Judged: ...
    def export(
        self, result: Result, out: Path, options: RunOptions = ..., *, force: bool = ..., command: str = ...,
        repeat: str = ...,
    ) -> Path: ...
    def default_out(self, trace: Trace) -> Path: ...
    def sibling(self, path: Path) -> Path | None: ...
    def weights_behind(self, model: ModelFile, layer: int | None, stage: str) -> Sequence[WeightFacts]: ...
    def weight_spread(self, model: ModelFile, name: str) -> Spread | None: ...
    def damage(self, source: Source, *, emit: Emit = ..., cancelled: IsCancelled = ...) -> Damage: ...
    def is_cost(self, path: Path) -> bool: ...
    def read_cost(self, path: Path, *, as_json: bool) -> str: ...
    def open_bill(self, path: Path) -> Damage | None: ...
    def write_cost(
        self, out: Path, found: Any, names: tuple[str, str | None], *, force: bool = ..., command: str = ...,  # noqa: ANN401
        repeat: str = ...,
    ) -> None: ...
    def audit(self, path: Path, cancelled: IsCancelled = ...) -> Audit: ...
    def ensure_demo(self) -> tuple[Path, Path]: ...


GetSession = Callable[[], SessionApi]


def get_session() -> SessionApi:
    """Load core.session; the first call takes a tenth of a second, so the worker makes it."""
    return cast(SessionApi, importlib.import_module("core.session"))
