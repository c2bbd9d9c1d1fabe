"""The bill of damage on the screen: layers x tensors, the order of cost, rows, the recipe, a saved folder."""

from __future__ import annotations

import numpy as np

from apr_tui.keys import DAMAGE_KEYS, GRID_KEYS
from core.bundle.costs import open_bill, write_damage
from core.damage.result import OWN_STEPS, Damage, Measured, Raise, TensorDamage
from tests.support.fake_session import FakeSession, console, text_of, until
from tests.support.fake_session import pair as a_pair

ROWS = np.array([1e-4, 8e-3, 1e-4, 2e-4])


def bill(**more):
    tensors = [TensorDamage("blk.1.attn_v.weight", 1, "Q4_0", 18432, 0.0084, 0.6, ROWS),
               TensorDamage("token_embd.weight", None, "Q8_0", 500000, 0.0036, 0.257),
               TensorDamage("blk.0.ffn_down.weight", 0, "Q4_0", 36864, 0.0015, 0.107),
               TensorDamage("blk.0.attn_v.weight", 0, "Q4_0", 18432, 0.0005, 0.036)]
    return Damage(OWN_STEPS, "first 512 tokens of the text of apr-tui", 0.014, None, 0.0, tuple(tensors), **more)


async def open_screen(pilot, app):
    await pilot.press("D")
    await until(pilot, lambda: getattr(app.screen, "kind", "") == DAMAGE_KEYS and app.owner is None)


async def test_a_bill_stands_as_layers_by_tensors_with_the_dearest_under_the_cursor(monkeypatch):
    async with console(monkeypatch, FakeSession(comparison=a_pair(), bill=bill())) as (app, pilot):
        await open_screen(pilot, app)
        text = text_of(app)
        assert app.screen.grid.place == (1, "attn_v") and app.screen.view.tone((1, "attn_v")) == "bad"
        assert "blk.1.attn_v.weight  Q4_0  18,432 bytes  0.0084 nats  60.0%  1 of 4 in cost" in text
        assert "sum of 4 tensors 0.0140 nats a token by own block steps" in text
        await pilot.press("n", "n")
        await pilot.pause()
        assert app.screen.grid.place == (0, "ffn_down"), "past the embedding, which is outside the layers"
        await pilot.press("m", "m")
        await pilot.pause()
        assert "36864" in text_of(app), "bytes are a metric too"


async def test_the_order_of_cost_the_rows_and_the_recipe_are_a_key_away(monkeypatch):
    found = bill(recipe=(Raise("blk.1.attn_v.weight", "Q4_0", "Q8_0", 17000, 0.008),),
                 measured=Measured(0.3, 0.1, "held-out text"))
    async with console(monkeypatch, FakeSession(comparison=a_pair(), bill=found)) as (app, pilot):
        await open_screen(pilot, app)
        await pilot.press("o")
        await pilot.pause()
        order = [line.split()[1] for line in text_of(app).splitlines() if line.strip()[:2] in ("1 ", "2 ", "3 ", "4 ")]
        assert order == ["blk.1.attn_v.weight", "token_embd.weight", "blk.0.ffn_down.weight", "blk.0.attn_v.weight"]
        await pilot.press("o", "enter")
        await pilot.pause()
        assert "row       1    0.0080  95.2%" in text_of(app) and "half of the cost is in 1 of them" in text_of(app)
        await pilot.press("q", "v")
        await pilot.pause()
        assert "blk.1.attn_v" in text_of(app) and "0.3000 before, 0.1000 after" in text_of(app)


async def test_a_saved_bill_opens_on_its_screen_and_q_ends_there(monkeypatch, tmp_path):
    folder = tmp_path / "costs"
    write_damage(folder, bill(), ("small.gguf", None), force=False, command="c", repeat="r")
    saved = open_bill(folder)
    assert [(t.name, t.kl, t.rows) for t in saved.tensors] == [(t.name, t.kl, None) for t in bill().tensors]
    async with console(monkeypatch, FakeSession(bill=saved), bundle=folder, path=None) as (app, pilot):
        await until(pilot, lambda: getattr(app.screen, "kind", "") == DAMAGE_KEYS)
        await pilot.press("enter")
        await pilot.pause()
        assert "this bill has no rows" in text_of(app)
        await pilot.press("q", "r")
        await pilot.pause()
        assert "This bill was saved" in text_of(app) and app.screen.command() == f"apr-tui show {folder}"
        await pilot.press("q")
        await until(pilot, lambda: app.return_code == 0)


async def test_a_cancelled_bill_says_so_and_leaves_the_trace(monkeypatch):
    fake = FakeSession(comparison=a_pair(), bill=bill(), stop_bill=True)
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("D")
        await until(pilot, lambda: app.owner is not None and "chunk 1 of 2" in text_of(app))
        await pilot.press("escape")
        await until(pilot, lambda: "cancelled: no bill" in text_of(app))
        await pilot.press("escape", "q")
        await until(pilot, lambda: getattr(app.screen, "kind", "") == GRID_KEYS)
        assert app.screen.traced is not None
