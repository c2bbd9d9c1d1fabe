"""The marks of a grid's cell, the multiples of the layer before that give them, and the metrics a grid can show."""

from __future__ import annotations

OK, WATCH, BAD, ABSENT, UNKNOWN = ".", "!", "X", "-", "?"
WATCH_RATIO = 3.0  # from here to the threshold: a precursor or a watch mark
UNUSUAL = 3.0  # over its column, from here on: a spike, and not a step up from a low layer
FALL_RATIO = 0.1
MARK_OF_KIND = {"nan": BAD, "ratio": BAD, "downstream": BAD, "after": BAD}  # of a finding; any other kind: watch
METRICS = ("std", "mean", "min", "max", "absmax", "l2", "nan", "inf", "zero", "ratio")
