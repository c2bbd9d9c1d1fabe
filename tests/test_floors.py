"""A package imports only lower ones, no import runs in a circle, heavy packages and sizes stay in their bounds.

Imports inside functions and for types alone count. A new module needs no row here; a new package does.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for folder in ("core", "apr_tui") for p in (ROOT / folder).rglob("*.py"))

# the lowest first; packages of one row know nothing of each other
FLOORS = ("system", "quant notebook", "formats", "kernels text", "model", "train faults", "trace demo",
          "audit damage", "proof sources", "bundle", "session", "apr_tui")
FLOOR = {package: floor for floor, row in enumerate(FLOORS) for package in row.split()}
MOST_FILES = 20  # modules of one folder


@dataclass(frozen=True)
class Package:
    """Where a heavy package may be imported. modules: a pattern of names; lazy: inside functions only."""

    modules: str
    lazy: bool = False


# package -> who may import it. At import time of nothing that --help, opening a file or the first screen needs.
PACKAGES = {
    "torch": Package(r"core\.(quant|kernels|model|train|faults|trace|proof|damage)\..*|core\.system\.gpu_errors|"
                     r"core\.audit\.(profiles|spread|weights\..*|conversion\..*)|"
                     r"core\.sources\.engines\.hf_transformers|core\.session\.(prepare|external|judge|run_trace)"),
    "triton": Package(r"core\.kernels\.gpu\..*"),
    "polars": Package(r"core\.(bundle\.csv_table|notebook\.result)", lazy=True),
    "gguf": Package(r"core\.(quant\.(dequantize|grids|quantize)|formats\.gguf_writer|faults\.byte_faults|"
                    r"sources\.engines\.hf_transformers|audit\.conversion\.names|damage\.recipe)", lazy=True),
    "pynvml": Package(r"core\.system\.gpus", lazy=True),
    "tokenizers": Package(r"core\.(text\.(bpe|other_encoders)|demo\.weights|train\.data\.vocabulary|"
                          r"sources\.engines\.trace|audit\.conversion\.vocabulary)", lazy=True),
    "jinja2": Package(r"core\.text\.chat_sandbox", lazy=True),
    "yaml": Package(r"core\.(proof\.contract_gates|sources\..*)", lazy=True),
    "safetensors": Package(r"core\.(trace\.values_file|proof\.reproducer|train\.checkpoint)"),
    "transformers": Package(r"core\.sources\.engines\.hf_transformers", lazy=True),
    "llama_cpp": Package(r"core\.sources\.engines\.llama_cpp", lazy=True),
    "textual": Package(r"apr_tui\..*"),
    "rich": Package(r"apr_tui\..*"),
    "numpy": Package(r"core\..*"),
    "msgspec": Package(r"core\.(train\.log|sources\.engines\.process|bundle\.(costs|judged))"),
    "platformdirs": Package(r"core\.system\.paths"),
}
LAZY_ONLY = {(module, "torch") for module in (
    "core.system.gpu_errors", "core.session.prepare", "core.session.external", "core.session.judge",
    "core.session.run_trace")}

# Files over 300 lines and functions over 40, each with its reason. A number may fall, not rise.
LONG_FILES: dict[str, tuple[int, str]] = {
}
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {
}


@dataclass(frozen=True)
class Import:
    """One import statement's target. typing: under TYPE_CHECKING, which never runs."""

    target: str
    lazy: bool
    typing: bool


def module_name(path: Path) -> str:
    """core/trace/stats.py is core.trace.stats; a folder's __init__.py is the folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def parsed(path: Path) -> ast.Module:
    """A file's syntax tree."""
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports(path: Path) -> tuple[Import, ...]:
    """Every import of a file, at its top and inside functions."""
    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(a.name, lazy, typing) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{path.name}:{child.lineno} is a relative import"
                for alias in child.names:
                    inner = ROOT / child.module.replace(".", "/") / alias.name
                    is_module = inner.is_dir() or inner.with_suffix(".py").exists()
                    yield Import(f"{child.module}.{alias.name}" if is_module else child.module, lazy, typing)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, lazy or inside, typing or checking)

    return tuple(walk(parsed(path), False, False))


def own_imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports."""
    return {i.target for i in imports(path) if i.target.split(".")[0] in ("core", "apr_tui")} - {module_name(path)}


def home_of(name: str) -> str:
    """The package of a module: the folder under core, or apr_tui."""
    parts = name.split(".")
    return parts[1] if parts[0] == "core" and len(parts) > 1 else parts[0]


def test_every_package_has_a_floor_and_every_floor_a_package():
    found = {home_of(module_name(p)) for p in MODULES} - {"core"}
    assert found == set(FLOOR), f"without a floor: {found - set(FLOOR)}; gone: {set(FLOOR) - found}"


def test_a_module_imports_its_own_package_or_lower_ones():
    for path in MODULES:
        name, own = module_name(path), home_of(module_name(path))
        if own == "core":
            assert not own_imports(path)
            continue
        for target in own_imports(path):
            home = home_of(target)
            assert home == own or FLOOR[home] < FLOOR[own], f"{name} ({own}) imports {target} ({home})"


def test_no_import_runs_in_a_circle():
    try:
        TopologicalSorter({module_name(p): own_imports(p) for p in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_a_folder_is_seen_at_a_glance():
    for folder in {p.parent for p in MODULES}:
        files = [p for p in folder.iterdir() if p.suffix in (".py", ".cpp", ".h")]
        assert len(files) <= MOST_FILES, f"{folder.relative_to(ROOT)} has {len(files)} files, {MOST_FILES} are allowed"


def test_heavy_packages_are_imported_only_where_they_belong():
    known = {*PACKAGES, *sys.stdlib_module_names, "core", "apr_tui"}
    for path in MODULES:
        name = module_name(path)
        for found in imports(path):
            package = found.target.split(".")[0]
            assert package in known, f"{name} imports {package}: a new dependency needs a row here and in DECISIONS.md"
            rule = PACKAGES.get(package)
            if rule is None or found.typing:
                continue
            assert re.fullmatch(rule.modules, name), f"{name} may not import {package}"
            late = rule.lazy or (name, package) in LAZY_ONLY
            assert found.lazy or not late, f"{name} imports {package} at import time"


@pytest.mark.parametrize(("module", "light"), [
    ("apr_tui.cli.main", {"torch", "polars", "gguf", "numpy", "textual", "tokenizers"}),
    ("apr_tui.app", {"torch", "polars", "gguf", "numpy", "tokenizers"}),
    ("core.session", {"torch", "polars", "gguf", "numpy", "textual", "tokenizers", "jinja2"}),
    ("core.session.run_trace", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
    ("core.session.judge", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
    ("core.formats.open_model", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
])
def test_what_opens_first_loads_nothing_heavy(module, light):
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not light & set(json.loads(out))


def test_no_commands_help_loads_numpy_or_textual():
    code = ("import sys, json; from apr_tui.cli import commands\n"
            "for name in commands.COMMANDS: commands.command_parser(name).format_help()\n"
            "print(json.dumps(sorted(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "polars", "gguf", "numpy", "textual", "tokenizers", "yaml"} & set(json.loads(out))


def test_a_command_that_tells_how_far_it_is_loads_no_textual():
    code = ("import sys, json; from types import SimpleNamespace; from apr_tui.cli import output, progress\n"
            "progress.progress(SimpleNamespace(quiet=False)); print(json.dumps(sorted(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "polars", "gguf", "textual", "rich"} & set(json.loads(out))


def test_opening_a_file_and_help_load_neither_torch_nor_gguf(tmp_path):
    from tests.support.small_models import write_model

    path = write_model(tmp_path / "m.gguf", tokenizer="bpe")
    code = ("import sys, json; from pathlib import Path; from core import session;"
            f"session.arch_facts(session.open_model(Path({str(path)!r}))); print(json.dumps(sorted(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "polars", "gguf", "tokenizers"} & set(json.loads(out))


def test_only_textual_compat_uses_textual_s_private_names():
    from textual.app import App
    from textual.screen import Screen

    private = {name for thing in (App(), Screen()) for name in dir(thing) if re.match("_[a-z]", name)}
    for path in (p for p in MODULES if any(i.target.startswith("textual") for i in imports(p))):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        methods = [m for n in nodes if isinstance(n, ast.ClassDef) for m in n.body if isinstance(m, ast.FunctionDef)]
        names = {n.attr for n in nodes if isinstance(n, ast.Attribute)} | {m.name for m in methods}
        assert path.stem == "textual_compat" or not names & private, f"{path.name} uses {names & private}"


def test_a_file_and_its_functions_stay_small():
    for path in MODULES:
        name = path.relative_to(ROOT).as_posix()
        text = path.read_text(encoding="utf-8")
        most, why = LONG_FILES.get(name, (300, "the ratchet"))
        n_line = len(text.splitlines())
        assert n_line <= most, f"{name} has {n_line} lines, {most} are allowed ({why})"
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                most, why = LONG_FUNCTIONS.get(f"{name} {node.name}", (40, "the ratchet"))
                assert length <= most, f"{node.name} in {name} has {length} lines, {most} are allowed ({why})"


def test_no_exception_outlives_its_reason():
    for name, (_, _) in LONG_FILES.items():
        assert len((ROOT / name).read_text().splitlines()) > 300, f"{name} is small again: take its row out"
    for key in LONG_FUNCTIONS:
        name, function = key.split(" ")
        nodes = [n for n in ast.walk(ast.parse((ROOT / name).read_text()))
                 if isinstance(n, ast.FunctionDef) and n.name == function]
        assert nodes, f"{key} is gone: take its row out"
        assert any((n.end_lineno or 0) - n.lineno + 1 > 40 for n in nodes), f"{key} is small again: take its row out"


def tracked() -> list[str]:
    """The files of the repository: git's list where there is one, else what lies here but hidden and built things."""
    asked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, cwd=ROOT)
    if asked.returncode == 0 and asked.stdout:
        return [name for name in asked.stdout.splitlines() if (ROOT / name).is_file()]
    files = (p.relative_to(ROOT) for p in ROOT.rglob("*") if p.is_file())
    built = re.compile(r"(^|/)(\.(?!ci/)[^/]*|__pycache__|build|[^/]*\.egg-info)(/|$)")
    return [p.as_posix() for p in files if not built.search(p.as_posix())]


def test_the_top_level_holds_only_what_design_names():
    names = {name.split("/")[0] for name in tracked()}
    extra = {n for n in names if not n.startswith(".")} - {
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "apr_tui", "core",
        "tests", "evidence"}
    assert not extra


# paths of one machine, and hosts that packages come from
PRIVATE = re.compile(
    r"/(?:work|opt|root)/[a-z]|/home/(?!user\b)[a-z]|pythonhosted|pypi\.|index-url|artifactory|download\.pytorch|https?://[^\s)]*:\d")


def test_no_file_names_a_machines_path_or_a_package_host():
    for name in tracked():
        data = (ROOT / name).read_bytes()
        if b"\0" in data or name == "tests/test_floors.py":
            continue
        found = PRIVATE.search(data.decode("utf-8", errors="replace"))
        assert not found, f"{name} names {found.group()!r}"


def test_the_package_ships_every_folder_that_it_imports_and_bounds_what_it_needs():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = told["tool"]["setuptools"]["packages"]["find"]["include"]
    shipped = {".".join(p.parent.relative_to(ROOT).parts) for p in MODULES}
    assert found == ["core*", "apr_tui*"]
    assert all((ROOT / folder.replace(".", "/") / "__init__.py").exists() for folder in shipped)
    data = told["tool"]["setuptools"]["package-data"]
    for path in (p for folder in shipped for p in (ROOT / folder.replace(".", "/")).iterdir() if p.is_file()):
        folder = ".".join(path.parent.relative_to(ROOT).parts)
        if path.suffix not in (".py", ".md"):
            assert any(path.match(pattern) for pattern in data.get(folder, [])), f"{path.name} is not shipped"
    needs = told["project"]["dependencies"]
    assert all(re.search(r">=.*<", n) for n in needs), "every dependency is a range with an end"
    assert "torch==2.13.0" in told["project"]["optional-dependencies"]["test"], "golden numbers hang on one torch"
    assert {"core": ["py.typed"], "apr_tui": ["*.tcss", "py.typed"]}.items() <= data.items()


def test_readme_s_tree_and_architectures_are_those_of_the_repository():
    from tests.tree import ARCHS_BEGIN, README, archs_text, readme_block, tree_text

    text = README.read_text(encoding="utf-8")
    assert readme_block(text) == tree_text(), "run python -m tests.tree"
    assert readme_block(text, ARCHS_BEGIN, "## ") == archs_text(), "run python -m tests.tree"


def test_papers_name_only_files_and_modules_that_exist():
    for paper in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "evidence/README.md"):
        text = (ROOT / paper).read_text(encoding="utf-8")
        named = [name.replace(".", "/") for name in re.findall(r"-m ((?:tests|core|apr_tui)\.[a-z_.]*[a-z_])", text)]
        named += re.findall(r"\b((?:core|apr_tui|tests)/[\w/.-]*\w)", text)
        lost = [n for n in named if not (ROOT / n).exists() and not (ROOT / n).with_suffix(".py").exists()]
        assert not lost, f"{paper} names {', '.join(lost)}"
