"""Read the points that the indices of a type's blocks name, as gguf-py has them. It decodes no block."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def grid_points(name: str) -> npt.NDArray[np.int8] | None:
    """Return the points of a type's grid [n, 4 or 8]; None where it has none. Source: gguf-py, gguf/quants.py."""
    from gguf import quants

    kind: Any = getattr(quants, name, None)
    if getattr(kind, "grid_hex", None) is None:
        return None
    kind.init_grid()
    points: npt.NDArray[np.int8] = kind.grid.reshape(kind.grid_shape).astype(np.int8)
    return points


def level_values(name: str) -> npt.NDArray[np.int8]:
    """Return the 16 levels of a type with a table, by a nibble. Source: gguf-py, gguf/quants.py."""
    from gguf import quants

    kind: Any = getattr(quants, name)
    return np.array(kind.kvalues, dtype=np.int8)
