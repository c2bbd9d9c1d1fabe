"""Text that a file brings never reaches the terminal raw: escapes, markup, bidi marks, wide characters."""

from __future__ import annotations

from dataclasses import replace

from rich.cells import cell_len

from core.system.errors import FileError
from tests.support.fake_session import ESCAPE, FakeSession, console, is_clean, pair, spiky_trace, text_of, until

WORDS = (ESCAPE, "[red]bold[/red]", "\u202eevil\u202c", "🧑\u200d🚀", "עברית", "全角文字", "\r\n\t\x00")
NAME = f"m{ESCAPE}[bold]\u202e.gguf"


class HostileSession(FakeSession):
    """A session whose weights have hostile names too."""

    def weights_behind(self, model, layer, stage):
        """One weight."""
        return [(f"blk{ESCAPE}[/]", f"Q{ESCAPE}", (64, 32))]


async def test_names_and_tokens_of_a_file_reach_no_screen_raw(monkeypatch):
    trace = replace(
        spiky_trace(words=WORDS), name=NAME, planted=f"nan@{ESCAPE}", generated=ESCAPE,
        facts=replace(spiky_trace().facts, arch=f"qwen{ESCAPE}", device=ESCAPE))
    found = replace(pair(), a=trace, b=trace, reasons=(f"weight {ESCAPE} [red]differs",))
    async with console(monkeypatch, HostileSession(trace, found), prompt=ESCAPE) as (app, pilot):
        await pilot.press("h")
        for keys in ("n", "enter", "enter", "end", "escape escape", "c", "e", "escape g", "v"):
            await pilot.press(*keys.split())
            await until(pilot, lambda: app.owner is None)
            assert is_clean(text_of(app)), (keys, text_of(app))
            for strip in app.screen._compositor.render_strips():
                assert strip.cell_length == 80 and cell_len(strip.text) == 80, strip.text


async def test_markup_in_a_token_stays_text(monkeypatch):
    async with console(monkeypatch, FakeSession(spiky_trace(words=WORDS)), (160, 60)) as (app, pilot):
        await pilot.press("enter")
        await pilot.pause()
        assert '"[red]bold[/red]"' in text_of(app)


async def test_an_error_with_a_hostile_path_is_shown_clean(monkeypatch):
    async with console(monkeypatch, FakeSession(fail=FileError(f"{NAME} [red] is not a model"))) as (app, _):
        assert is_clean(text_of(app)) and "[red] is not a model" in text_of(app)
