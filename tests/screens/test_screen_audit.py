"""The audit's page under its own key, and where else the console tells of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from core.audit.audit_file import Audit
from core.audit.finding import Finding, Strength
from core.trace.events import FilesCompared
from tests.support.fake_session import (
    ESCAPE,
    FakeSession,
    assert_screen,
    console,
    is_clean,
    pair,
    spiky_trace,
    text_of,
    until,
)

FACTS = {
    "architecture": "qwen2", "name": f"tiny{ESCAPE}", "format": "gguf", "bytes": 3 << 20, "not_run": None, "unread": [],
    "keys": {"qwen2.block_count": 28, "qwen2.rope.freq_base": 1e6}, "known": None, "template": None, "notes": [],
    "types": {"Q4_K": {"tensors": 196, "bytes": 3 << 20}}, "zero_token_rows": 0, "trained": True,
    "tokenizer": {"model": "gpt2", "pre": "qwen2", "tokens": 300, "rows": 320, "notes": []}}
PROOF = Finding("twins", Strength.PROOF, "blk.3.ffn_up.weight and blk.4.ffn_up.weight are the same, byte for byte",
                "no two weights of a model are the same", 1.0, "blk.3.ffn_up.weight", 3)
HINT = Finding("level", Strength.HINT, "blk.9.attn_v.weight is 8 x the level of its 28 siblings (robust z 21)",
               "a tensor has about the level of the same tensor in other layers", 8.0, "blk.9.attn_v.weight", 9)


async def test_a_shows_the_audit_with_proofs_before_hints(monkeypatch):
    fake = FakeSession(audited=Audit("tiny.gguf", FACTS, 339, (PROOF, HINT)))
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("a")
        await until(pilot, lambda: "proof 1 of 1" in text_of(app))
        assert_screen(app, "audit")
        assert is_clean(text_of(app))
        await pilot.press("c")
        assert app.screen.command() == "apr-tui audit tiny.gguf"
        await pilot.press("escape")
        await until(pilot, lambda: app.screen.kind == "grid")
    assert [c for c in fake.calls if c[0] == "audit"] == [("audit", Path("tiny.gguf"))]


async def test_a_trace_of_a_file_at_fault_says_so_in_one_line(monkeypatch):
    note = f"audit proves: {PROOF.sentence} (apr-tui audit tiny.gguf)"
    async with console(monkeypatch, FakeSession(traced=replace(spiky_trace(), notes=(note,)))) as (app, _):
        assert "X audit proves: blk.3.ffn_up.weight" in text_of(app)


async def test_a_comparison_shows_what_the_files_differ_in_before_the_verdict(monkeypatch):
    fake = FakeSession(comparison=pair())

    def compare(a, b, prompt, options, *, emit, cancelled):
        emit(FilesCompared(("other bytes in blk.5.ffn_down.weight (from row 3 on)",)))
        fake.go.wait(5)
        return fake.comparison

    monkeypatch.setattr(fake, "compare", compare)
    async with console(monkeypatch, fake) as (app, pilot):
        await pilot.press("g")
        await until(pilot, lambda: "files: other bytes in blk.5.ffn_down.weight (from row 3 on)" in text_of(app))
        assert "the verdict comes" in text_of(app)
        fake.go.set()
        await until(pilot, lambda: "H2" in text_of(app))
