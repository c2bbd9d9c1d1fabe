"""Hold what a screen shows of a bill of damage: layers x tensors, a metric, the order of cost. It computes no bill."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from apr_tui.view_models.number import shorten
from core.model.stages import Place
from core.trace.finding import ABSENT, OK

if TYPE_CHECKING:
    from core.damage.result import Damage, TensorDamage

METRICS = {"kl": "nats a token that the tensor's rounding costs", "share": "its part of all tensors' sum",
           "bytes": "bytes of the tensor", "per_mb": "nats a token for each MB: what raising it brings"}
MB = 1e6
BRIGHT, WARM = 1, 10  # of the order of cost: the first, and those that are marked


class DamageView:
    """One bill at a metric. columns: the tensors of a layer, by role, in the file's order."""

    def __init__(self, found: Damage | None = None) -> None:
        self.metric = "kl"
        self.take(found)

    def take(self, found: Damage | None) -> None:
        """Show a bill."""
        self.bill = found
        tensors: Sequence[TensorDamage] = found.tensors if found is not None else ()
        self.ranked = tuple(sorted(tensors, key=lambda t: -t.kl))
        self.rank = {t.name: i + 1 for i, t in enumerate(self.ranked)}
        self.at = {(t.layer, role_of(t.name)): t for t in tensors if t.layer is not None}
        self.columns = tuple(sorted({role for _, role in self.at}, key=_order)) or ("tensor",)

    @property
    def n_row(self) -> int:
        """Layers of the model."""
        return max((layer for layer, _ in self.at), default=-1) + 1

    def number_of(self, tensor: TensorDamage) -> float:
        """The metric of a tensor."""
        return tensor.kl * MB / tensor.bytes if self.metric == "per_mb" else float(getattr(tensor, self.metric))

    def cell(self, row: int, column: str) -> tuple[str, str]:
        """Text and mark of a cell."""
        tensor = self.at.get((row, column))
        return shorten(None if tensor is None else self.number_of(tensor), ABSENT if tensor is None else OK)

    def tone(self, place: Place) -> str:
        """The dearest tensor bright, the next ones marked."""
        tensor = self.at.get((place[0] or 0, place[1]))
        rank = self.rank[tensor.name] if tensor is not None else len(self.rank)
        return "bad" if rank <= BRIGHT else "watch" if rank <= WARM else "text" if tensor is not None else "quiet"

    def next_metric(self) -> None:
        """The metric after the present one."""
        names = list(METRICS)
        self.metric = names[(names.index(self.metric) + 1) % len(names)]

    def place_of(self, tensor: TensorDamage) -> tuple[int, int] | None:
        """Row and column of a tensor; None outside the layers."""
        return None if tensor.layer is None else (tensor.layer, self.columns.index(role_of(tensor.name)))


def role_of(name: str) -> str:
    """What a tensor of a layer does: attn_q of blk.3.attn_q.weight."""
    parts = name.removesuffix(".weight").split(".")
    return ".".join(parts[2:]) if parts[0] == "blk" and len(parts) > 2 else name


def _order(role: str) -> tuple[bool, str]:
    return (role.startswith("ffn"), role)
