"""One exit for text: nothing of a file, a name or the environment reaches a terminal or a clipboard unescaped."""

import json
import os
import re
import shlex
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from apr_tui.cli.commands import COMMANDS
from apr_tui.cli.main import main
from apr_tui.textual_compat import UNSTEERED
from core.session.evidence import default_out
from core.system.limits import MESSAGE_BYTES
from core.system.safe_text import SafeStream, join_words, safe_lines
from core.trace.record import Trace
from tests.fuzz.run_readers import LOGS
from tests.hostile.test_reports import RECORDS
from tests.support.bundles import save, spiking
from tests.support.fake_session import ESCAPE, FakeSession, console, is_clean, spiky_trace, text_of, until
from tests.support.small_models import write_model
from tests.support.spoil import is_shown, spoilt

HOSTILE = f"{ESCAPE}\u202e\x9b31m\x15\x07"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """One thing of each kind whose names, and whose every text, are hostile."""
    home = tmp_path_factory.mktemp("hostile") / f"d{HOSTILE}"
    home.mkdir()
    model = write_model(home / f"m{HOSTILE}.gguf", tokenizer="bpe", n_layer=1, d_model=32,
                        keys={"general.name": HOSTILE})
    other = write_model(home / f"o{HOSTILE}.gguf", tokenizer="bpe", n_layer=1, d_model=32,
                        keys={f"strange.{HOSTILE}": HOSTILE})
    bundle = save(spiking(generated=HOSTILE, notes=(HOSTILE,), planted=HOSTILE), home / f"b{HOSTILE}")
    run = home / f"r{HOSTILE}"
    run.mkdir()
    for name, value in LOGS.items():
        (run / name).write_text(json.dumps(spoilt(value)) + "\n")
    (home / "trace.txt").write_text(f"Layer 0/2\n{HOSTILE}: 1\n")
    (home / "c.yaml").write_text("falsification_tests:\n- " + json.dumps({"id": HOSTILE, "rule": HOSTILE}) + "\n")
    (home / "not.gguf").write_text(f"GG{HOSTILE}")
    (home / "long.txt").write_text(f"{HOSTILE} " * 20)
    quantised = write_model(home / f"q{HOSTILE}.gguf", "Q8_0", tokenizer="bpe", n_layer=1, d_model=32)
    verdict, cost = home / f"v{HOSTILE}", home / f"k{HOSTILE}"
    for name, folder in (("comparison", verdict), ("bill", cost)):
        make, write = RECORDS[name]
        write(spoilt(make()), folder)
    return {p.name[0]: p for p in (model, other, bundle, run, quantised, verdict, cost)} | {"home": home}


def words_of(name, files):
    """Command lines of a command, good ones and refused ones."""
    home, model, other = files["home"], files["m"], files["o"]
    feed = ("--tokens", "1,2", "--threads", "1")
    return {
        "trace": [(model, *feed, "--contract", home / "c.yaml"), (model, "--prompt", HOSTILE, "--json"),
                  (home / HOSTILE,), (home / "not.gguf",), (model, HOSTILE), (model, "--plant", HOSTILE),
                  (other, "--scope", HOSTILE)],
        "check": [(model, *feed), (files["b"], "--model", model), (model, "--prompts", home / HOSTILE)],
        "compare": [(model, other, *feed), (files["b"], files["b"]), (f"{model}@x={HOSTILE}", other)],
        "bisect": [(model, home / HOSTILE, *feed)],
        "look": [(model, "0.qkv", *feed), (model, HOSTILE), (home / HOSTILE, "0.qkv")],
        "train": [("--watch", files["r"]), ("--watch", files["r"], "--json"), ("--watch", home / HOSTILE),
                  ("--out", home / "t", "--config", HOSTILE), ("--mode", HOSTILE)],
        "import": [(home / "trace.txt", "--out", home / f"i{HOSTILE}")],
        "convert": [(model, home / f"c{HOSTILE}.apr"), (other, home / f"c{HOSTILE}.x")],
        "show": [(files[kind], form) for kind in "bvk" for form in ("--text", "--json")] + [(home / HOSTILE, "--text")],
        "audit": [(model,), (other, "--json"), (model, other), (home / HOSTILE, home), (home / "not.gguf",)],
        "kl": [(model, other, "--tokens", "4", "--worst", "1", "--threads", "1", "--corpus", home / "trace.txt",
                "--out", home / f"l{HOSTILE}")],
        "damage": [(files["q"], "--corpus", home / "long.txt", "--threads", "1"), (files["q"], "--original", home)],
        "demo": [("--out", home / f"e{HOSTILE}"), ("--out", model)], "doctor": [(), ("--json",), (HOSTILE,)],
    }.get(name, [(home / HOSTILE,), (HOSTILE, "--x"), (model, files["b"])])


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_writes_what_steers_a_terminal(name, files, capsys, monkeypatch):
    monkeypatch.setenv("TERM", HOSTILE)
    monkeypatch.setenv("APR_TUI_KERNEL", f"x{HOSTILE}")
    for words in words_of(name, files):
        code = main([name, *map(str, words)])
        said = capsys.readouterr()
        assert code != 70 and is_shown(said.out) and is_shown(said.err), (words, code, said)
        assert len(said.err) < 2 * MESSAGE_BYTES + 1000


def test_every_name_of_the_walk_is_that_of_a_command(files):
    assert all(words_of(name, files) for name in COMMANDS)


@pytest.mark.parametrize("screen", ["", "enter", "enter enter", "question_mark", "o", "e", "slash", "f", "i"])
async def test_no_screen_shows_what_a_file_s_text_steers(screen, monkeypatch):
    trace = replace(spiky_trace(words=(HOSTILE, "b")), name=f"{HOSTILE}.gguf", planted=HOSTILE, generated=HOSTILE,
                    notes=(HOSTILE,))
    copied = []
    async with console(monkeypatch, FakeSession(trace), prompt=HOSTILE) as (app, pilot):
        monkeypatch.setattr("textual.app.App.copy_to_clipboard", lambda self, text: copied.append(text))
        for key in screen.split():
            await pilot.press(key)
            await until(pilot, lambda: app.owner is None)
        await pilot.press("c")
        assert is_clean(text_of(app)) and all(map(is_shown, copied))


async def test_what_a_screen_forgets_to_escape_does_not_reach_the_terminal(monkeypatch):
    """Planted: a screen that shows a name as it is."""
    monkeypatch.setattr("apr_tui.screens.trace.escape_untrusted", lambda text: text, raising=False)
    monkeypatch.setattr("apr_tui.render.title.escape_untrusted", lambda text: text)
    trace = replace(spiky_trace(), name=f"a{HOSTILE}b", planted=HOSTILE)
    async with console(monkeypatch, FakeSession(trace)) as (app, _):
        assert is_clean(text_of(app))
        assert UNSTEERED in app.get_line_filters()


WORDS = ["plain", "a b", "it's", f"x{HOSTILE}", "a\nb\x15", "\udcff", "$'x'", "\\", "é\x01'\""]


@pytest.mark.parametrize("word", WORDS)
def test_a_copied_command_is_printable_and_means_the_same_to_a_shell(word):
    line = join_words(["printf", "%s", word])
    assert is_shown(line) and "\n" not in line
    said = subprocess.run(["bash", "-c", line], capture_output=True, check=True).stdout
    assert said == os.fsencode(word)
    assert word.isprintable() is False or shlex.split(line)[2] == word


def test_the_stream_lets_lines_and_a_rewritten_line_through():
    class Kept(list):
        write = list.append

    kept = Kept()
    stream = SafeStream(kept)
    print("a\x1b[2Jb\nc\rd", file=stream)
    print("layer 1", end="\r", file=stream)
    assert "".join(kept) == "a\\x1b[2Jb\nc\\rd\nlayer 1\r"


@pytest.mark.parametrize("size", [MESSAGE_BYTES + 1, 1_000_000, 44_000_000])
def test_a_long_message_keeps_its_beginning_and_its_end(size):
    text = safe_lines("begin " + "\x1b" * size + " the way out.", MESSAGE_BYTES)
    assert len(text) <= MESSAGE_BYTES + 80 and text.startswith("begin \\x1b") and text.endswith(" the way out.")
    assert re.search(r" \.\.\. [0-9]+ characters \.\.\. ", text)


@pytest.mark.parametrize("name", [HOSTILE, "../../etc/passwd", "a/b", "x" * 500, "", "-rf", "~"])
def test_the_folder_that_is_offered_is_named_plainly(name):
    found = default_out(Trace(name, spiky_trace().facts, (), {}))
    assert found.parent == Path("evidence") and re.fullmatch(r"[\w.+-]{0,101}-[0-9a-f]{8}", found.name)
