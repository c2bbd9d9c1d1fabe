"""The marks of a grid's cell, and the multiples of the layer before that give them."""

from __future__ import annotations

from core.trace.finding import FindingKind

OK, WATCH, BAD, ABSENT, UNKNOWN = ".", "!", "X", "-", "?"
WATCH_RATIO = 3.0  # from here to the threshold: a precursor or a watch mark
UNUSUAL = 3.0  # over its column, from here on: a spike, and not a step up from a low layer
FALL_RATIO = 0.1
# of a finding; any other kind: watch
MARK_OF_KIND = {FindingKind.NAN: BAD, FindingKind.RATIO: BAD, FindingKind.DOWNSTREAM: BAD,
                FindingKind.AFTER: BAD}
