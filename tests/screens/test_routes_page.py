"""The layer page of a router: the experts of each token, how near they were to others, and the load."""

from __future__ import annotations

from apr_tui.render.routes import load_lines, route_lines
from core import session
from core.trace.request import Prompt, Source
from tests.support.families import E, write_family

IDS = (3, 17, 5, 42, 42, 7, 90, 1, 8, 11)


def text(rows) -> list[str]:
    return ["".join(part for part, _ in row) for row in rows]


def test_a_routers_cell_says_each_tokens_experts_margin_and_the_load(tmp_path) -> None:
    path = write_family(tmp_path / "a.gguf", "experts")
    traced = session.trace(Source(path, device="cpu"), Prompt(tokens=IDS))
    cell = traced.cells[1, "moe_weights"]
    assert cell.routes.n == E and int(cell.routes.load.sum()) == 2 * len(IDS)
    assert (cell.routes.margin > 0).all()
    lines = text(route_lines(cell))
    assert len(lines) == 1 + len(IDS) and lines[0] == " margin of the logits, then expert:weight"
    heavy = int(cell.routes.experts[0][cell.routes.weights[0].argmax()])
    assert lines[1].split()[0] == "0" and lines[1].split()[2].startswith(f"{heavy}:")
    few = text(route_lines(cell, height=3))
    nearest = sorted(range(len(IDS)), key=lambda t: cell.routes.margin[t])[:2]
    assert [int(line.split()[0]) for line in few[1:]] == sorted(nearest)
    load = text(load_lines(cell, 4))
    assert load[0].startswith(" load: tokens of an expert; ") and load[0].endswith(f" of {E} idle")
    assert int(load[1].split()[1]) == cell.routes.load.max()
