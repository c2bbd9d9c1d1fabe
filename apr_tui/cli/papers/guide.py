"""The command guide: print one page on how to find a bug by commands alone, or the commands themselves as a document.

STEPS is the whole method, without judgement; tests/bench/agent.py follows it on planted bugs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from apr_tui.cli.commands import COMMANDS, EXAMPLES, command_line
from apr_tui.cli.papers.usage import EXIT_CODES, ON_ERROR, Word, usage_of
from apr_tui.options import Arguments as Basic
from apr_tui.options import Parser
from core.system.json_text import to_json


class Arguments(Basic):
    """Arguments of guide."""

    json: bool


@dataclass(frozen=True, slots=True)
class Step:
    """One command of the method. words: with GOOD and BAD; needs_good: whether it takes a side known to be good.

    found: what exit code 1 says, and in which keys of the document. else_: what any other code says.
    """

    command: str
    words: str
    found: str
    else_: str

    @property
    def needs_good(self) -> bool:
        """Whether it takes a side that is known to be good."""
        return "GOOD" in self.words


STEPS = (
    Step("audit", "BAD", "the file's own bytes or keys are wrong: `findings[0]`, a proof, names `tensor`, `row`, "
         "`block` and in `sentence` what it is", "the bytes break no rule that one file shows"),
    Step("check", "BAD", "the engine does not compute what the file says: `first` is the place (`layer`, `stage`, "
         "`token`, `channel`), `reasons[0]` the kind",
         "each stage follows from its inputs: if the output is still wrong, the file is, and a good one shows it"),
    Step("compare", "GOOD BAD", "H2: `first` is where they part, `side` the one that float64 finds wrong, `reasons` "
         "the tensor or key; `files` says in words how the files differ",
         "0: the model itself, or a declared choice (H1, H3); 4 and 5: `reasons` says what to do"),
    Step("bisect", "GOOD BAD", "`sentence` is the proof, `ladder` what a graft at each place brings back",
         "as compare"),
)
ACTS = (  # what the console does by a key, and the command that does it
    ("enter 1 2 3 4", "look model.gguf 3.ffn_swigl --json"), ("D", "damage model.gguf --json"),
    ("r i s", "trace model.gguf --prompt 'Hello' --scope last --json"),
    ("C", "trace model.gguf --chat --json"), ("x", "check model.gguf --json"),
    ("g G m", "compare good.gguf bad.gguf --json"), ("b", "bisect good.gguf bad.gguf --json"),
    ("a", "audit model.gguf --json"), ("e", "trace model.gguf --out evidence/hello --json"),
    ("f", "show evidence/hello --json"), ("t", "train --config tiny --steps 40 --out run --json"),
    ("?", "guide --json"),
)
HAVE = (
    ("one file", "`audit FILE`, then `check FILE`, then `trace FILE` for hints: where to look, no proof"),
    ("a good and a bad file", "`compare GOOD BAD`; `bisect GOOD BAD --out DIR` for the proof"),
    ("the original (config.json, safetensors)", "`audit FILE ORIGINAL`: what the converter did wrong"),
    ("a file and another engine", "`compare FILE llama.cpp:FILE`, `compare FILE transformers:FOLDER`"),
    ("a log or a dump of another engine", "`import DUMP --model FILE --out THEIRS`, then `check THEIRS --model FILE` "
     "(values) or `compare FILE THEIRS` (statistics); `import --help` lists the forms"),
    ("a quantised file that answers badly", "`kl F16 FILE`, `damage FILE`: which tensors cost the most"),
)


def add_arguments(parser: Parser) -> None:
    """Describe the command line."""
    parser.take("--json")


def run(arguments: Arguments) -> int:
    """Print the page or the document and return the exit code."""
    sys.stdout.write(to_json(guide_document(), indent=1) + "\n" if arguments.json else guide_page())
    return 0


def guide_document() -> dict[str, Any]:
    """Every command with what it takes and its examples, the method, and the exit codes."""
    from core.bundle.manifest import SCHEMA

    return {
        "schema": SCHEMA,
        "commands": [{"name": name, "about": about, "takes": [_word(w) for w in usage_of(name)],
                      "examples": [{"command": command_line(name, e), "about": e.about} for e in EXAMPLES[name]]}
                     for name, about in COMMANDS.items()],
        "steps": [{"command": f"apr-tui {s.command} {s.words} --json", "found": s.found, "else": s.else_}
                  for s in STEPS],
        "exit_codes": {str(code): said for code, said in EXIT_CODES.items()},
    }


def guide_page() -> str:
    """The page, as Markdown."""
    lines = ["# Find a bug by commands alone", "",
             "Each command prints one JSON document with `--json`; stdout has nothing else, progress is on stderr "
             "(`--quiet`: none). The exit code is the answer, the document says where. Missing is `null`; numbers that "
             "are not finite are the strings nan, inf, -inf.", "",
             "## The method", "",
             "BAD is what misbehaves: a model file, with the settings it is run by (`FILE@compute=q8`). GOOD is a file "
             "or an engine known to be right, where you have one. Stop at the first exit code 1.", ""]
    for i, step in enumerate(STEPS, 1):
        lines += [f"{i}. `apr-tui {step.command} {step.words} --json`",
                  f"   - exit 1: {step.found}.", f"   - else: {step.else_}."]
    lines += ["", "A place is a layer and a stage: `3.ffn_swigl`. A hint (`findings` of trace) comes from one run and "
              "proves nothing: look there, then check or compare. Try it on a bug of your own: "
              "`apr-tui check model.gguf --plant shift@1.qkv --json`.", "",
              "## Which files do you have?", "", "| you have | ask |", "|---|---|",
              *(f"| {have} | {ask} |" for have, ask in HAVE), "",
              "## Exit codes", "", ON_ERROR, "", "| code | it means |", "|---|---|",
              *(f"| {code} | {said} |" for code, said in EXIT_CODES.items()), "",
              "## The console's keys as commands", "", "| key | command |", "|---|---|",
              *(f"| {key} | `apr-tui {words}` |" for key, words in ACTS), "", "## Commands", ""]
    for name, about in COMMANDS.items():
        lines += [f"- **{name}**: {about}", *(f"  - `{command_line(name, e)}`: {e.about}" for e in EXAMPLES[name])]
    return "\n".join(lines) + "\n"


def _word(word: Word) -> dict[str, Any]:
    return {"flags": list(word.flags), "name": word.name if word.takes else None, "about": word.about,
            "offered": list(word.offered)}
