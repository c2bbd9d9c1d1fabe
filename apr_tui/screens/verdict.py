"""The grid that ends in a verdict: what the comparison and the check share beyond the trace's. No numbers here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from apr_tui.render.status import error_note, export_note
from apr_tui.screens.grid import GridScreen
from core.model.stages import GRID_STAGES, STAGES, Place, stage_named
from core.system.errors import Cancelled

if TYPE_CHECKING:
    from core.bundle.judged import Judged


class VerdictScreen(GridScreen):
    """A grid over the trace: it starts at once, or shows what was saved; it hides the detail stages, and goes back."""

    def __init__(self, view: Any, saved: Judged | None = None) -> None:  # noqa: ANN401 (PairView or CheckView)
        super().__init__(view)
        self.saved = saved  # a verdict that was read from its folder
        self.seconds: float | None = None  # of the finished run
        self.end = ""                      # how the run ended, where it gave nothing

    def on_mount(self) -> None:
        """Start, or show what was saved."""
        if self.saved is None:
            self.action_run()
        else:
            self.take(self.saved)
            self.call_after_refresh(self.show_all)

    @property
    def has_detail(self) -> bool:
        """Whether the detail stages are columns too."""
        return self.grid.columns != GRID_STAGES

    @property
    def with_detail(self) -> tuple[str, ...]:
        """The columns with the detail stages: those of special layers where the run has them."""
        there = {stage for _, stage in self.view.known}
        return tuple(s.name for s in STAGES if not s.whole and (not s.special or s.name in there))

    def column_of(self, stage: str) -> int:
        """The column of a stage; a detail stage brings its columns along."""
        if stage_named(stage).detail and not self.has_detail:
            self.action_detail()
        return super().column_of(stage)

    def go_to(self, place: Place) -> None:
        """Put the cursor at a cell; a stage of the whole model has none."""
        if place[0] is not None:
            self.grid.go(place[0], self.column_of(place[1]))

    def step(self, places: Sequence[Place], step: int) -> Place:
        """The place after the cursor, or before it, and around at the ends."""
        here = (self.grid.row, self.grid.column)
        at = {p: (p[0] or 0, self.grid.columns.index(p[1])) for p in places}
        after = [p for p in places if at[p] > here] if step > 0 else [p for p in places if at[p] < here][::-1]
        return (after or (places if step > 0 else places[::-1]))[0]

    def job_finished(self, kind: str, result: Any, error: Exception | None) -> None:  # noqa: ANN401
        """Take the verdict, or why there is none, or the end of an export."""
        if kind == "export":
            self.note = export_note(result, error)
        elif error is not None:
            self.end = "cancelled: no verdict" if isinstance(error, Cancelled) else "failed: no verdict"
            self.note = None if isinstance(error, Cancelled) else error_note(error)
        else:
            self.seconds, self.note = self.console.run_seconds, None
            self.take(result)
        self.show_all()

    def take(self, result: Any) -> None:  # noqa: ANN401 (a Judged of the child's kind)
        """Show a verdict, the cursor at what it names."""
        raise NotImplementedError

    def action_run(self) -> None:
        """Begin what gives the verdict, again or for the first time."""
        raise NotImplementedError

    def action_detail(self) -> None:
        """Show or hide the detail stages; the cursor stays at its stage, or goes to the next one that is shown."""
        row, stage = self.grid.place
        wide = self.with_detail
        self.grid.columns = self.overview.columns = GRID_STAGES if self.has_detail else wide
        later = wide[wide.index(stage):]
        self.grid.row, self.grid.column = row, self.grid.columns.index(next(s for s in later if s in self.grid.columns))
        self.show_all()

    def action_back(self) -> None:
        """Cancel the run; else take the message away; else go back to the trace."""
        if self.console.owner is self and self.console.cancel_job():
            self.say("cancelling ...", "watch")
        elif self.note is not None:
            self.clear_note()
        else:
            self.dismiss()
