"""Every kind of file that is read, a row each: a good one, and how it is read as far as the program ever does.

The rows stand with their kin: models, evidence, what other tools write, training; options are here. Which function
opens what, and that none lacks a row: doors.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from apr_tui.cli.commands import read_arguments
from apr_tui.cli.launch import prompt_of, read_option
from apr_tui.config import read_config
from apr_tui.ground import read_answer
from apr_tui.recent import NAME, recent, remember
from core.damage.corpus import read_corpus
from core.formats.open_model import open_model
from core.proof.contract_gates import contract_gates
from core.system.paths import state_folder
from core.text.tokenizer import open_tokenizer
from tests.fuzz.evidence_readers import EVIDENCE
from tests.fuzz.foreign_readers import FOREIGN
from tests.fuzz.model_readers import MODELS, gguf
from tests.fuzz.reader import Reader, written
from tests.fuzz.run_readers import RUNS

CONTRACT = "name: c\nfalsification_tests:\n- id: FFN-GGUF-001\n  rule: a rule\n- {id: BAND, rule: [a, 1, 2.5]}\n"
WORDS = json.dumps(["--threads", "2", "--tokens", "1,2,3", "--scope", "pos:1", "--layers", "0..2", "--threshold", "3"])


def _read_words(path: Path) -> object:
    """A command line: the words of a JSON list."""
    try:
        words = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
    flat = [str(w).replace("\0", "") for w in words] if isinstance(words, list) else []
    if {"--help", "-h"} & {*flat}:
        return None
    return prompt_of(read_arguments("trace", ["m.gguf", *flat]))


def _corpus(folder: Path) -> Path:
    gguf(folder)
    return written("c.txt", "some text and more of it\n" * 3)(folder)


def _recent(folder: Path) -> Path:
    os.environ["XDG_STATE_HOME"] = str(folder)
    remember(folder)
    return state_folder() / NAME


def _config(folder: Path) -> Path:
    os.environ["XDG_CONFIG_HOME"] = str(folder)
    path = folder / "apr-tui" / "config.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text('theme = "light"\nthreshold = 8\nprompt = "a\\nb"\nchat = true\nmouse = false\n')
    return path


def _read_corpus(path: Path) -> object:
    return read_corpus(path, open_tokenizer(open_model(path.with_name("m.gguf"))), 8, 16)


OPTIONS: dict[str, Reader] = {
    "contract": Reader(written("c.yaml", CONTRACT), lambda p: contract_gates(read_option(p, "--contract"), "c", []),
                       each_run=300),
    "prompt file": Reader(written("p.txt", "What is 2+2?\n"), lambda p: read_option(p, "--prompt-file")),
    "corpus of kl": Reader(_corpus, _read_corpus, each_run=300),
    "user's config": Reader(_config, lambda p: (read_config(), read_arguments("trace", ["m.gguf"])), each_run=200),
    "recent files": Reader(_recent, lambda p: recent()),
    "command line": Reader(written("w.json", WORDS), _read_words),
    "terminal's answer": Reader(written("a", "\x1b]11;rgb:ffff/0000/1234\x1b\\\x1b[?64;1c"),
                                lambda p: read_answer(p.read_bytes())),
}
READERS: dict[str, Reader] = {**MODELS, **EVIDENCE, **FOREIGN, **RUNS, **OPTIONS}
