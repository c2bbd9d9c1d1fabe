"""Write README's "Where things are" (the packages, each with its sentence and its modules) and "Architectures".

usage: python -m tests.tree    (rewrites both blocks in README.md)
"""

from __future__ import annotations

import ast
import textwrap
from pathlib import Path

from core.formats.architectures import ARCHS, REFUSED
from core.model.file_facts import NEUTRAL
from core.text.pre_tokenizers import PRE_NAMED
from core.text.tokenizer import FAMILIES
from tests.test_floors import FLOORS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
WIDTH = 118
ARCHS_BEGIN = "## Architectures\n\n"
BEGIN, END = "## Where things are\n\n```\n", "```\n"


def tree_text() -> str:
    """The whole block, as README must have it."""
    order = [name for row in reversed(FLOORS) for name in row.split()]
    packages = {path.parent for top in ("apr_tui", "core") for path in (ROOT / top).rglob("__init__.py")}
    known = sorted(packages, key=lambda p: (_rank(p, order), p.relative_to(ROOT).parts))
    return "".join(_lines(package) for package in known)


def archs_text() -> str:
    """The names that run, and those that are refused by name with their reasons."""
    reasons: dict[str, list[str]] = {}
    for name, why in REFUSED.items():
        reasons.setdefault(why, []).append(name)
    return "\n".join([
        *textwrap.wrap(f"`general.architecture` of a file that runs: {', '.join(ARCHS)}.", WIDTH), "",
        "Refused by name, beside any other name, and any file with a tensor or a key that nothing would read:", "",
        *(f"- {', '.join(names)}: {why}." for why, names in reasons.items()),
        *textwrap.wrap("- a value that changes numbers in one of these keys, where its architecture does not read it: "
                       f"{', '.join(NEUTRAL)}.", WIDTH, subsequent_indent="  "),
        "", *textwrap.wrap("Refused files still trace through another engine that runs them: `apr-tui trace "
                           "llama.cpp:FILE` gives the statistics of the stages that it names, and nothing is "
                           "recomputed.", WIDTH), "",
        *textwrap.wrap(f"Tokenizers: `tokenizer.ggml.model` {', '.join(FAMILIES)}; `tokenizer.ggml.pre` "
                       f"{', '.join(PRE_NAMED)}. A file with another one traces with --tokens.", WIDTH), "", ""])


def readme_block(readme: str, begin: str = BEGIN, end: str = END) -> str:
    """The block as it stands in README."""
    start = readme.index(begin) + len(begin)
    return readme[start:readme.index(end, start)]


def _rank(package: Path, order: list[str]) -> int:
    top, *inner = package.relative_to(ROOT).parts
    return order.index(inner[0] if top == "core" else top) if inner or top != "core" else 0


def _lines(package: Path) -> str:
    """A package's name and sentence; below, its modules and sources."""
    path = package.relative_to(ROOT)
    told = ast.get_docstring(ast.parse((package / "__init__.py").read_text(encoding="utf-8"))) or ""
    sentence = told.partition(". ")[0].rstrip(".")
    lines = [f"{'  ' * (len(path.parts) - 1)}{path.name + '/':<{24 - 2 * len(path.parts)}} {sentence}"]
    names = [p.stem if p.suffix == ".py" else p.name for p in package.iterdir() if p.suffix in (".py", ".cpp", ".h")]
    names = sorted(name for name in names if not name.startswith("__"))
    lines += textwrap.wrap(", ".join(names), WIDTH, initial_indent=" " * 23, subsequent_indent=" " * 23)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    text = README.read_text(encoding="utf-8")
    text = text.replace(BEGIN + readme_block(text) + END, BEGIN + tree_text() + END)
    old = ARCHS_BEGIN + readme_block(text, ARCHS_BEGIN, "## ")
    README.write_text(text.replace(old, ARCHS_BEGIN + archs_text()), encoding="utf-8")
