"""A module imports only its own package or lower ones, heavy packages stay where they belong, and files stay small.

Imports for types alone count. A new module needs a place in the table; a place for a module that is gone fails too.
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
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for folder in ("core", "apr_tui") for p in (ROOT / folder).rglob("*.py"))

# package -> its modules (core's, without "core."), the lowest first; packages of one row know nothing of each other
ROWS: tuple[dict[str, str], ...] = (
    {"system": "cancel errors file_map gpu_failure jsontext new_file new_folder numbers safe_text telemetry "
               "user_folders"},
    {"quant": "activations decode quantise quants weight"},
    {"formats": "apr_file apr_keys apr_metadata apr_writer gguf_file gguf_walk gguf_writer model_file packed reader"},
    {"kernels": "kernels", "text": "bpe chat_sandbox chat_template spm token_child tokenizer"},
    {"model": "arch convert forward graph_decode kernels.resident lanes matmul ops stages"},
    {"train": "train_checkpoint train_config train_corpus train_gates train_grads train_invariants train_log "
              "train_loop train_model train_oracle train_peaks train_prepare train_probes train_records train_run "
              "train_run_document train_session train_shards train_step train_tokenizer train_view train_windows "
              "train_world",
     "faults": "faults_bytes plants wrong_ops"},
    {"trace": "carriers device_watch events finding grid marks measures run source sources.measure spikes stats tap "
              "trace value_file",
     "demo": "demo demo_model"},
    {"proof": "activation_crush bisection captured captured_verdict comparability compare decoded distance gates "
              "ladder_file pair replay reproducer saved_pair symptoms verdict weight_diff",
     "sources": "sources"},
    {"bundle": "cell_table evidence grid_text manifest report verdict_files"},
    {"session": "captures opening session"},
    {"apr_tui": "apr_tui"},
)
FLOOR = {package: floor for floor, row in enumerate(ROWS) for package in row}
HOME = {module: package for row in ROWS for package, modules in row.items() for module in modules.split()}


@dataclass(frozen=True)
class Package:
    """Where a heavy package may be imported. modules: a pattern of names; lazy: inside functions only."""

    modules: str
    lazy: bool = False


# package -> who may import it. At import time of nothing that --help, opening a file or the first screen needs.
PACKAGES = {
    "torch": Package(r"in (quant|kernels|model|train|faults|trace|proof)|gpu_failure|sources\.hf_transformers|"
                     r"session|captures|opening"),
    "triton": Package(r"kernels\.triton_.*"),
    "polars": Package(r"evidence", lazy=True),
    "gguf": Package(r"decode|gguf_writer|faults_bytes|quantise", lazy=True),
    "pynvml": Package(r"telemetry", lazy=True),
    "tokenizers": Package(r"bpe|demo_model|train_tokenizer|sources\.engine_trace", lazy=True),
    "jinja2": Package(r"chat_sandbox", lazy=True),
    "yaml": Package(r"gates|sources\..*", lazy=True),
    "safetensors": Package(r"value_file|reproducer|train_checkpoint"),
    "transformers": Package(r"sources\.hf_transformers", lazy=True),
    "llama_cpp": Package(r"sources\.llama_cpp", lazy=True),
    "textual": Package(r"apr_tui\..*"),
    "rich": Package(r"apr_tui\..*"),
    "numpy": Package(r"in (?!apr_tui).*"),
}
LAZY_ONLY = {("opening", "torch"), ("captures", "torch"), ("gpu_failure", "torch")}

# Files over 300 lines and functions over 40, each with its reason. A number may fall, not rise.
LONG_FILES = {
}
LONG_FUNCTIONS = {
    "core/replay.py replay": (65, "three lanes share what they hold at a place: five taps that close over one another"),
    "core/pair.py run_pair": (50, "six lanes share what they hold at a place"),
    "core/captured.py run_beside": (50, "as run_pair, where a side is a capture"),
    "core/captures.py compare_sources": (45, "the cases of two sides, one after the other"),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target. typing: under TYPE_CHECKING, which never runs."""

    target: str
    lazy: bool
    typing: bool


def module_name(path: Path) -> str:
    """core/sources/aprt.py is sources.aprt; apr_tui/app.py is apr_tui.app."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return name.removeprefix("core.")


def imports(path: Path) -> Iterator[Import]:
    """Every import of a file, at its top and inside functions."""
    def walk(node: ast.AST, lazy: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(a.name, lazy, typing) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0 and child.module, f"{path.name}:{child.lineno} is a relative import"
                for alias in child.names:
                    inner = ROOT / child.module.replace(".", "/") / f"{alias.name}.py"
                    yield Import(f"{child.module}.{alias.name}" if inner.exists() else child.module, lazy, typing)
            inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            checking = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from walk(child, lazy or inside, typing or checking)

    return walk(ast.parse(path.read_text(encoding="utf-8")), False, False)


def home_of(name: str) -> str | None:
    """The package of a module by its name, or by that of its folder. None: it has no row."""
    return HOME.get(name) or HOME.get(name.split(".")[0])


def own_imports(path: Path) -> set[str]:
    """The modules of this repository that a file imports, inside functions and for types alone too."""
    names = {found.target for found in imports(path) if found.target.split(".")[0] in ("core", "apr_tui")}
    return {name.removeprefix("core.") for name in names} - {module_name(path)}


def test_every_module_has_a_row_and_every_row_a_module():
    found = {module_name(p) for p in MODULES} - {"core"}
    known = {name if name in HOME else name.split(".")[0] for name in found}
    assert known == set(HOME), f"without a row: {known - set(HOME)}; gone: {set(HOME) - known}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_its_own_package_or_lower_ones(path):
    name = module_name(path)
    own = home_of(name)
    if own is None:  # core itself
        assert not own_imports(path)
        return
    for target in own_imports(path):
        home = home_of(target)
        assert home is not None, f"{name} imports {target}, which has no row"
        assert home == own or FLOOR[home] < FLOOR[own], f"{name} ({own}) imports {target} ({home})"


def test_no_module_imports_itself_by_a_way_round():
    graph = {module_name(path): own_imports(path) for path in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_heavy_packages_are_imported_only_where_they_belong(path):
    name = module_name(path)
    known = {*PACKAGES, *sys.stdlib_module_names, "core", "apr_tui"}
    for found in imports(path):
        package = found.target.split(".")[0]
        assert package in known, f"{name} imports {package}: a new dependency needs a row here and in DECISIONS.md"
        rule = PACKAGES.get(package)
        if rule is None or found.typing:
            continue
        where = f"{name}|in {home_of(name)}"
        assert any(re.fullmatch(rule.modules, w) for w in where.split("|")), f"{name} may not import {package}"
        late = rule.lazy or (name, package) in LAZY_ONLY
        assert found.lazy or not late, f"{name} imports {package} at import time"


@pytest.mark.parametrize(("module", "light"), [
    ("apr_tui.cli.main", {"torch", "polars", "gguf", "numpy", "textual", "tokenizers"}),
    ("apr_tui.app", {"torch", "polars", "gguf", "numpy", "tokenizers"}),
    ("apr_tui.cli.commands", {"torch", "polars", "gguf", "textual", "tokenizers", "yaml"}),
    ("core.session", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
    ("core.formats.open_model", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
])
def test_what_opens_first_loads_nothing_heavy(module, light):
    code = f"import sys, json, {module}; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not light & set(json.loads(out))


def test_opening_a_file_and_help_load_neither_torch_nor_gguf(tmp_path):
    from tests.small_models import write_model

    path = write_model(tmp_path / "m.gguf", tokenizer="bpe")
    code = ("import sys, json; from pathlib import Path; from core import session;"
            f"session.arch_facts(session.open_model(Path({str(path)!r}))); print(json.dumps(sorted(sys.modules)))")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert not {"torch", "polars", "gguf", "tokenizers"} & set(json.loads(out))


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_file_and_its_functions_stay_small(path):
    name = path.relative_to(ROOT).as_posix()
    text = path.read_text(encoding="utf-8")
    most, why = LONG_FILES.get(name, (300, "the ratchet"))
    n_line = len(text.splitlines())
    assert n_line <= most, f"{name} has {n_line} lines, {most} are allowed ({why})"
    for node in ast.walk(ast.parse(text)):
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
        "pyproject.toml", "README.md", "apr_tui", "core", "tests", "evidence"}
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


def test_the_package_ships_every_folder_that_it_imports_and_pins_what_numbers_hang_on():
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    shipped = set(told["tool"]["setuptools"]["packages"])
    assert shipped == {".".join(p.parent.relative_to(ROOT).parts) for p in MODULES if p.name == "__init__.py"}
    data = told["tool"]["setuptools"]["package-data"]
    for path in (p for folder in shipped for p in (ROOT / folder.replace(".", "/")).iterdir() if p.is_file()):
        folder = ".".join(path.parent.relative_to(ROOT).parts)
        if path.suffix not in (".py", ".md"):
            assert any(path.match(pattern) for pattern in data.get(folder, [])), f"{path.name} is not shipped"
    needs = told["project"]["dependencies"]
    assert [n for n in needs if n.startswith(("torch", "textual"))] == ["textual==8.2.8", "torch==2.13.0"]
    assert all(re.search(r"==|>=.*<", n) for n in needs), "every dependency is pinned or bounded"
