"""A module imports only its own floor or lower ones, heavy packages stay where they belong, and files stay small.

The table below is DESIGN's, module by module. A new module needs a row; a row for a module that is gone fails too.
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
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(p for folder in ("core", "apr_tui") for p in (ROOT / folder).rglob("*.py"))

FLOORS = {
    "0 words": "cancel errors stages safe_text source user_folders",
    "1 bytes": "file_map gpu_failure jsontext model_file new_file new_folder packed quantise quants telemetry "
               "value_file",
    "2 readers": "apr_file apr_keys apr_metadata apr_writer bpe chat_sandbox chat_template demo demo_model "
                 "faults_bytes gguf_file gguf_walk gguf_writer reader spm token_child tokenizer",
    "3 math": "arch convert decode forward kernels matmul ops wrong_ops",
    "4 watching": "device_watch events finding graph_decode lanes measures plants run stats tap trace",
    "5 judging": "activation_crush bisection captured captured_verdict carriers comparability compare decoded distance "
                 "gates grid ladder_file pair replay reproducer saved_pair sources spikes symptoms verdict weight_diff "
                 "train_checkpoint train_config train_corpus train_gates train_grads train_invariants train_log "
                 "train_loop train_model train_oracle train_peaks train_probes train_records train_run train_session "
                 "train_shards train_step train_tokenizer train_view train_windows train_world",
    "6 proof": "cell_table evidence manifest report verdict_files",
    "7 door": "captures opening session",
}
FLOOR = {name: int(floor[0]) for floor, names in FLOORS.items() for name in names.split()}
SCREEN = 8


@dataclass(frozen=True)
class Package:
    """Where a heavy package may be imported. modules: a pattern of names; lazy: inside functions only."""

    modules: str
    lazy: bool = False


# package -> who may import it. At import time of nothing that --help, opening a file or the first screen needs.
PACKAGES = {
    "torch": Package(r"floor [345]|gpu_failure|session|captures|opening"),  # from floor 7 only inside functions
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
    "numpy": Package(r"floor [1-7]"),
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


def floor_of(name: str) -> int | None:
    """The floor of a module by its name; sources and kernels are folders of one floor. None: it has no row."""
    if name.split(".")[0] == "apr_tui":
        return SCREEN
    return FLOOR.get(name.split(".")[0])


def test_every_module_has_a_row_and_every_row_a_module():
    found = {module_name(p).split(".")[0] for p in MODULES} - {"core", "apr_tui"}
    assert found == set(FLOOR), f"without a row: {found - set(FLOOR)}; gone: {set(FLOOR) - found}"


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_a_module_imports_no_higher_floor(path):
    name = module_name(path)
    own = floor_of(name)
    if own is None:  # core itself
        assert not list(imports(path))
        return
    for found in imports(path):
        if found.target.split(".")[0] not in ("core", "apr_tui") or found.typing:
            continue
        target = found.target.removeprefix("core.")
        floor = floor_of(target)
        assert floor is not None and floor <= own, f"{name} (floor {own}) imports {target} (floor {floor})"


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
        where = f"{name}|floor {floor_of(name)}"
        assert any(re.fullmatch(rule.modules, w) for w in where.split("|")), f"{name} may not import {package}"
        late = rule.lazy or (name, package) in LAZY_ONLY
        assert found.lazy or not late, f"{name} imports {package} at import time"


@pytest.mark.parametrize(("module", "light"), [
    ("apr_tui.cli", {"torch", "polars", "gguf", "numpy", "textual", "tokenizers"}),
    ("apr_tui.app", {"torch", "polars", "gguf", "numpy", "tokenizers"}),
    ("apr_tui.commands", {"torch", "polars", "gguf", "textual", "tokenizers", "yaml"}),
    ("core.session", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
    ("core.reader", {"torch", "polars", "gguf", "textual", "tokenizers", "jinja2"}),
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
