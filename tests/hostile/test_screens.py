"""Every key of every screen over records whose every text is hostile: nothing of it reaches terminal or clipboard."""

import json
from dataclasses import replace

import pytest

from apr_tui import keys
from apr_tui.workers.train import Training
from core.audit.audit_file import Audit
from tests.fuzz.run_readers import LOGS
from tests.screens.test_screen_audit import FACTS, HINT, PROOF
from tests.screens.test_screen_damage import bill as a_bill
from tests.screens.test_screen_train import show
from tests.support.fake_checks import BAD, FakeCheckSession, bisection, check_of, shallow
from tests.support.fake_session import console, is_clean, text_of, until
from tests.support.spoil import HOSTILE, is_shown, spoilt

# how each screen is reached from the grid, by keys
WAYS = {keys.GRID_KEYS: "", keys.LAYER_KEYS: "enter", keys.PAGE_KEYS: "enter enter", keys.PAIR_KEYS: "g",
        keys.CHECK_KEYS: "x", keys.CHECK_LAYER_KEYS: "x enter", keys.LADDER_KEYS: "g b b", keys.AUDIT_KEYS: "a",
        keys.TRAIN_KEYS: "", keys.DAMAGE_KEYS: "D"}
UNUSED = {"quit", "run", "trace"}  # actions that leave the screen for good


class Hostile(FakeCheckSession):
    """A session of hostile records."""

    def weights_behind(self, model, layer, stage):
        """One weight."""
        return [(f"blk{HOSTILE}", f"Q{HOSTILE}", (64, 32))]


def hostile_session():
    trace = replace(shallow(), planted="gelu@5.ffn_silu", generated="four", notes=("a note",))
    audited = Audit("tiny.gguf", FACTS, 339, (PROOF, HINT))
    bill = a_bill(notes=("a note",), refusal="none is asked for")
    return Hostile(spoilt(trace), checked=spoilt(check_of(trace, BAD)), bisected=spoilt(bisection()),
                   audited=spoilt(audited), bill=spoilt(bill))


async def press(app, pilot, key):
    await pilot.press(key)
    await until(pilot, lambda: app.owner is None)
    assert is_clean(text_of(app)), (app.screen, key, text_of(app))


@pytest.mark.slow
@pytest.mark.parametrize("kind,way", [*((k, way) for k, way in WAYS.items() if k != keys.TRAIN_KEYS),
                                      (keys.LAYER_KEYS, "g enter")])
async def test_no_key_of_a_screen_shows_or_copies_what_steers(kind, way, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    copied = []
    async with console(monkeypatch, hostile_session(), prompt=HOSTILE) as (app, pilot):
        monkeypatch.setattr("textual.app.App.copy_to_clipboard", lambda self, text: copied.append(text))
        for key in way.split():
            await press(app, pilot, key)
        there = app.screen
        assert there.kind == kind or kind == keys.PAGE_KEYS, (there.kind, kind)
        for row in keys.keys_of(kind):
            if row.action.split("(")[0] in UNUSED or row.action == "back":
                continue
            await press(app, pilot, row.keys.split(",")[0])
            while app.screen is not there:
                await press(app, pilot, "escape")
        assert all(map(is_shown, copied)) and not any("\n" in text for text in copied)


def test_every_screen_has_a_way():
    assert set(WAYS) == set(keys.ALL)


async def test_no_key_of_the_training_screen_shows_or_copies_what_steers(monkeypatch, tmp_path):
    run, copied = tmp_path / "run", []
    run.mkdir()
    for name, value in LOGS.items():
        (run / name).write_text(json.dumps(spoilt(value)) + "\n")
    (run / "ckpt" / "step-000001").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    async with console(monkeypatch, hostile_session()) as (app, pilot):
        monkeypatch.setattr("textual.app.App.copy_to_clipboard", lambda self, text: copied.append(text))
        there = await show(app, pilot, Training(run))
        assert is_clean(text_of(app))
        for row in keys.keys_of(keys.TRAIN_KEYS):
            if row.action.split("(")[0] in UNUSED or row.action in ("back", "train", "again"):
                continue
            await press(app, pilot, row.keys.split(",")[0])
            while app.screen is not there:
                await press(app, pilot, "escape")
        app.training.leave(5.0)
    assert all(map(is_shown, copied))
