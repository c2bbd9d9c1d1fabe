"""How long a phase of alike steps takes is told by those that are done."""

from __future__ import annotations

from core.system.progress import Pace, Phase


def test_a_pace_is_that_of_the_steps_done_and_starts_anew_with_another_phase():
    pace = Pace()
    assert pace.left(Phase("loading"), 0.0) is None and pace.left(Phase("chunk", 1, 5), 10.0) is None
    assert pace.left(Phase("chunk", 2, 5), 12.0) == 8.0 and pace.left(Phase("chunk", 4, 5), 16.0) == 4.0
    assert pace.left(Phase("token", 1, 3), 20.0) is None and pace.left(Phase("token", 2, 3), 21.0) == 2.0
