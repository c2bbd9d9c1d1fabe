"""Write a number in the few columns that a screen has for it. One rule for every table and line."""

from __future__ import annotations

import math

CELL_WIDTH = 7


def short(x: float | int | None, width: int = CELL_WIDTH) -> str:
    """Shorten a number to six characters and its sign, or to width: 11.459, 0.0021, 1.2e-7, -1.2e-7, nan, inf, -.

    The most decimals that fit, four at most; powers of ten below 0.001 and where the digits do not fit.
    """
    if x is None:
        return "-"
    if not math.isfinite(x) or x == 0:
        return str(x) if x else "0"
    sign, size = ("-" if x < 0 else ""), abs(x)
    room = min(CELL_WIDTH - 1, width - len(sign))
    forms = [] if size < 0.001 else [str(size)] if isinstance(x, int) else [f"{size:.{d}f}" for d in (4, 3, 2, 1, 0)]
    forms += [_powers(size, d) for d in (1, 0)]
    return next((sign + form for form in forms if len(form) <= room), sign + ("inf" if size > 1 else "0.0"))


def _powers(size: float, decimals: int) -> str:
    mantissa, power = f"{size:.{decimals}e}".split("e")
    return f"{mantissa}e{int(power)}"
