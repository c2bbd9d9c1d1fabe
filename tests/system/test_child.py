"""Processes of our own: isolated from the working folder, one question, one answer."""

import json
import subprocess
import sys

import pytest

from core.system.child import answer, ask_child, child_command, child_environment, start_apart, take_answer
from core.text import encode_process
from core.text.chat_template import render_chat_template
from tests.support.small_models import write_model

TRAPS = ("json", "argparse", "torch", "core", "numpy", "re", "apr_tui")


@pytest.fixture
def trapped(monkeypatch, tmp_path):
    """A working folder whose modules would be taken for others; importing one leaves a mark."""
    folder, mark = tmp_path / "here", tmp_path / "mark"
    folder.mkdir()
    for name in TRAPS:
        (folder / f"{name}.py").write_text(f"open({str(mark)!r}, 'a').write('{name} ')\nraise SystemExit(9)\n")
    monkeypatch.chdir(folder)
    return mark


def said(mark):
    return mark.read_text() if mark.exists() else ""


def test_the_prompt_and_a_template_are_read_beside_hostile_modules(trapped, tmp_path):
    path = write_model(tmp_path / "m.gguf", tokenizer="bpe")
    encoded = encode_process.take_encoded(encode_process.start_encoding(path, "ab", chat=False))
    assert encoded and render_chat_template("<{{ messages[0].content }}>", "hi", "", "") == "<hi>"
    assert said(trapped) == ""


@pytest.mark.parametrize("setting", [None, "", ".", "elsewhere"])
def test_an_engine_or_a_detached_run_starts_beside_hostile_modules(trapped, tmp_path, monkeypatch, setting):
    if setting is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", setting)
    with (tmp_path / "log").open("wb") as log:
        start_apart((*child_command("apr_tui"), "--help"), log, child_environment()).wait(60)
    assert "usage: apr-tui" in (tmp_path / "log").read_text() and said(trapped) == ""


def test_a_childs_own_children_are_isolated_too(trapped):
    code = "import subprocess, sys; sys.exit(subprocess.run([sys.executable, '-c', 'import json']).returncode)"
    ran = subprocess.run([sys.executable, "-P", "-c", code], env=child_environment(), check=False)
    assert (ran.returncode, said(trapped)) == (0, "")


def test_the_trap_works_without_isolation(trapped):
    ran = subprocess.run([sys.executable, "-c", "import torch"], check=False)
    assert (ran.returncode, said(trapped)) == (9, "torch ")


def test_a_child_that_ends_or_hangs_gives_no_answer(monkeypatch):
    with pytest.raises(ValueError):
        take_answer(ask_child("core.nothing", {}), 30)
    program = (sys.executable, "-c", "import time; time.sleep(60)")
    monkeypatch.setattr("core.system.child.child_command", lambda module: program)
    child = ask_child("any", {})
    with pytest.raises(TimeoutError, match=r"0\.2 s"):
        take_answer(child, 0.2)
    assert child.poll() is not None


def test_a_question_and_its_answer_are_one_document_each(monkeypatch, capsys):
    class Stdin:
        class buffer:
            read = staticmethod(lambda: b'{"a": [1, "\\u4f60"]}')

    monkeypatch.setattr("sys.stdin", Stdin)
    answer(lambda asked: asked["a"])
    assert json.loads(capsys.readouterr().out) == [1, "你"]
