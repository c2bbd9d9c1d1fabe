"""What a stranger's file may ask for: only regular files are read, up to a limit, and any loop can be ended."""

import ast
import os
import re
import signal
import subprocess
import sys
import threading
import time
from hashlib import pbkdf2_hmac
from pathlib import Path

import pytest

from apr_tui.cli.main import main
from core.bundle.reader import read_bundle
from core.formats import identity
from core.formats.apr_reader import verify_footer
from core.formats.open_model import open_model
from core.proof.contract_gates import contract_gates
from core.sources.imports import wide_csv
from core.sources.imports.open_trace import import_trace
from core.system import limits, mapped_file, paths, regular_file
from core.system.cancel import wait_for
from core.system.child import child_environment
from core.system.errors import FileError, UsageError
from core.system.json_text import from_json
from core.system.regular_file import read_file, read_text
from core.text.library import encode_text
from core.trace.request import Source, parse_source
from core.train.config import TrainOptions, settle
from core.train.data.vocabulary import read_vocabulary
from core.train.log import Tail
from core.train.reader import open_run
from tests.support.small_models import write_model

ROOT = Path(__file__).parents[2]
# who opens a file by itself, and why that is no stranger's file, or is held to a limit there
OPENERS = {
    "core/system/regular_file.py": "the one reader",
    "core/system/mapped_file.py": "maps: regular files only",
    "core/system/rests.py": "/proc",
    "core/kernels/cpu/build.py": "the package's own sources, and a cache that is ours alone",
    "core/kernels/cpu/instruction_sets.py": "/proc",
    "core/sources/engines/process.py": "a log of its own, its end only",
    "core/sources/imports/array_bytes.py": "an entry of a zip that is in memory, held to its size",
    "core/sources/imports/aprt.py": "12 bytes of a file that is_file() has seen",
    "core/bundle/writer.py": "what it has just written",
    "core/system/atomic_file.py": "50 bytes of a file that is no pipe and no device",
    "core/trace/values_file.py": "what refuse_irregular has seen",
    "core/proof/reproducer.py": "text of a program that it writes",
    "apr_tui/render/status.py": "/proc",
}
WRITES = re.compile(r"""open\((?:[^()]|\([^()]*\))*["'](?:[wax]b?|a)["']""")


def test_no_reader_goes_past_the_limits():
    found = set()
    for path in (p for folder in ("core", "apr_tui") for p in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name not in ("read_text", "read_bytes", "open", "fromfile", "load"):
                continue
            owner = ast.unparse(node.func)
            reads = name in ("read_text", "read_bytes") and isinstance(node.func, ast.Attribute)
            opens = (name == "open" and owner != "os.open" and not WRITES.search(ast.unparse(node))
                     and "devnull" not in ast.unparse(node))
            if reads or opens or owner in ("np.fromfile", "np.load", "numpy.load", "json.load"):
                found.add(path.relative_to(ROOT).as_posix())
    assert found <= set(OPENERS), f"read with core.system.regular_file: {found - set(OPENERS)}"


def sparse(path, size):
    """A file that claims a size and takes no room."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def no_files(tmp_path):
    """What stands under a file's name and is none."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(pipe)
    return [pipe, tmp_path / "folder", tmp_path / "link", Path("/dev/zero"), Path("/dev/tty")]


READERS = {  # every way in -> how it is read
    "model": lambda p: open_model(p), "import": lambda p: import_trace(p),
    "a prompt": lambda p: refused_by_command("trace", "m.gguf", "--prompt-file", p),
    "prompts": lambda p: refused_by_command("check", "m.gguf", "--prompts", p),
    "a contract": lambda p: refused_by_command("trace", "demo.gguf", "--contract", p),
    "a config": lambda p: settle(TrainOptions(Path("o"), config=str(p))),
    "a file": lambda p: read_file(p, 10, ""), "a text": lambda p: read_text(p, 10, ""),
    "a log": lambda p: Tail(p).read(),
}


def refused_by_command(*words):
    """Run a command in process; its exit code 3 is a FileError."""
    code = main([str(word) for word in words])
    if code:
        raise FileError(f"exit {code}") if code == 3 else AssertionError(code)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("demo") / "demo.gguf", tokenizer="bpe")


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_a_device_or_a_folder_is_refused_at_once(name, tmp_path, monkeypatch, demo):
    monkeypatch.chdir(demo.parent)
    began = time.process_time()
    for path in no_files(tmp_path):
        if (name, path.name) == ("import", "folder") or not path.exists():
            continue
        if name == "a config":
            link = tmp_path / f"{path.name}.toml"
            link.symlink_to(path)
            path = link
        with pytest.raises((FileError, UsageError)):
            READERS[name](path)
    assert time.process_time() - began < 5


@pytest.mark.parametrize("name", READERS)
def test_a_sparse_file_of_terabytes_is_refused_at_once(name, tmp_path, monkeypatch, demo):
    monkeypatch.chdir(demo.parent)
    path = sparse(tmp_path / "big.toml", 1 << 40)
    began = time.process_time()
    with pytest.raises(FileError):
        READERS[name](path)
    assert time.process_time() - began < 3


@pytest.mark.parametrize("entry", ["manifest.json", "stats.csv", "tokens.csv", "values.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "zero", "sparse"])
def test_a_bundle_or_a_run_with_such_a_file_inside_is_refused(entry, kind, tmp_path):
    folder = tmp_path / "b"
    folder.mkdir()
    for name in {entry} | ({"manifest.json"} if entry != "manifest.json" else set()):
        (folder / name).write_text('{"schema": "apr-tui/1"}')
    (folder / entry).unlink()
    make = {"pipe": os.mkfifo, "zero": lambda p: os.symlink("/dev/zero", p), "sparse": lambda p: sparse(p, 1 << 40)}
    make[kind](folder / entry)
    with pytest.raises(FileError):
        read_bundle(folder)
    run = tmp_path / "r"
    run.mkdir()
    make[kind](run / "run.json")
    with pytest.raises(FileError):
        open_run(run)


def test_a_file_that_grows_behind_its_size_is_read_to_the_limit_only(tmp_path, monkeypatch):
    path = tmp_path / "f"
    path.write_bytes(b"x" * 100)
    real = os.fstat
    monkeypatch.setattr(regular_file.os, "fstat", lambda n: os.stat_result([*real(n)[:6], 0, *real(n)[7:]]))
    with pytest.raises(FileError, match="at most 10 may be read"):
        read_file(path, 10, "")


ALIASES = "a: &a [x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 8)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
HOSTILE_CONTRACTS = {
    "aliases": f"{ALIASES}falsification_tests:\n- {{id: x, rule: *i}}\n",
    "merged keys": "a: &a {x: 1}\nfalsification_tests:\n- <<: *a\n  id: y\n",
    "deep": "[" * 5000,
    "a date": "falsification_tests:\n- id: 9999-99-99\n",
}


@pytest.mark.parametrize("name", HOSTILE_CONTRACTS)
def test_yaml_that_multiplies_is_refused(name):
    with pytest.raises(FileError) as told:
        contract_gates(HOSTILE_CONTRACTS[name], "c.yaml", [])
    assert len(str(told.value)) < 2000


def test_words_and_dates_in_a_contract_are_text(tmp_path):
    text = "falsification_tests:\n- {id: 2024-01-01, rule: null}\n- {id: [a, b], rule: {c: 1}}\n- {id: .nan}\n"
    assert [g.id for g in contract_gates(text, "c", [])] == ["2024-01-01", "['a', 'b']", "nan"]


@pytest.mark.parametrize("text", [
    "[" * 100 + "]" * 100, '{"a":' * 80 + "1" + "}" * 80, "[" * 100_000, "[1e999]", '{"a": -1.5e400}'])
def test_json_in_json_in_json_and_numbers_beyond_a_float_are_refused(text):
    with pytest.raises(FileError, match="not a JSON document"):
        from_json(text, "d.json", "")
    assert from_json("[" * 60 + "]" * 60, "d", "") is not None


@pytest.mark.parametrize("text,word", [
    ("layer," + ",".join(["attn_norm"] * 3000) + "\n", "1024 columns"),
    ("layer,attn_norm\n" + "0,1\n" * 60_000, "cells at most")])
def test_a_wide_or_a_long_table_is_refused_before_it_is_kept(text, word, tmp_path, monkeypatch):
    assert wide_csv.CELLS == limits.CELLS
    monkeypatch.setattr(wide_csv, "CELLS", limits.CELLS // 10)
    (tmp_path / "t.csv").write_text(text)
    began = time.process_time()
    with pytest.raises(FileError, match=word):
        import_trace(tmp_path / "t.csv")
    assert time.process_time() - began < 3


def test_a_bundle_with_a_million_columns_is_refused_by_its_heading(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema": "apr-tui/1"}')
    (tmp_path / "stats.csv").write_text(",".join(map(str, range(1_000_000))))
    with pytest.raises(FileError) as told:
        read_bundle(tmp_path)
    assert "line 1" in str(told.value) and len(str(told.value)) < 1000


def test_a_log_with_an_endless_line_is_refused(tmp_path):
    (tmp_path / "t.jsonl").write_bytes(b'{"a":1}\n' + b" " * (limits.LINE_BYTES + 1))
    with pytest.raises(FileError, match="a line of more than"):
        Tail(tmp_path / "t.jsonl").read()


@pytest.mark.parametrize("key", ["--threads", "--batch"])
@pytest.mark.parametrize("value", ["0", "-1", "1e9", "1000000000", "100000", "65537", "nan", "", "1.5"])
def test_numbers_that_no_machine_has_are_usage_errors(key, value, tmp_path):
    words = ["train", "--out", tmp_path / "o", key, value]
    assert main([str(word) for word in words]) == 2 and not (tmp_path / "o").exists()
    if key == "--threads":
        assert main(["trace", "m.gguf", "--threads", value]) == 2
        with pytest.raises(UsageError, match="1 to 1024"):
            parse_source(f"m.gguf@threads={value}", Source(Path()))


def test_the_largest_allowed_numbers_are_read():
    assert parse_source("m.gguf@threads=1024", Source(Path())).threads == limits.THREADS == 1024
    assert limits.BATCH == 65536
    with pytest.raises(UsageError, match="65536 sequences"):
        settle(TrainOptions(Path("o"), batch=65537))


def seconds_to_end(work):
    """How long a loop or a library's call goes on after a real Ctrl-C, pressed when it has run for 0.1 s."""
    pressed = [0.0]

    def press():
        time.sleep(0.1)
        pressed[0] = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = threading.Thread(target=press)
    thread.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            work()
        return time.monotonic() - pressed[0]
    finally:
        thread.join()
        signal.signal(signal.SIGINT, before)


def test_reading_every_byte_of_a_sparse_file_ends_within_a_second_of_ctrl_c(tmp_path):
    data = mapped_file.map_file(sparse(tmp_path / "m.apr", 40 << 30))
    assert seconds_to_end(lambda: verify_footer("m.apr", data)) < 1


def test_a_library_s_long_call_ends_within_a_second_of_ctrl_c():
    """No instruction of Python in it: 2 s of hashing."""
    assert seconds_to_end(lambda: wait_for(lambda: pbkdf2_hmac("sha256", b"a", b"b", 4_000_000))) < 1


@pytest.mark.slow
def test_encoding_a_long_text_ends_within_a_second_of_ctrl_c():
    from tokenizers import Tokenizer, models

    engine = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))
    assert encode_text(engine, "ab" * 100) == engine.encode("ab" * 100).ids
    assert seconds_to_end(lambda: encode_text(engine, "ab" * (1 << 21))) < 1


def test_what_a_long_call_returns_or_raises_is_the_caller_s():
    assert wait_for(lambda: 5) == 5
    with pytest.raises(ZeroDivisionError):
        wait_for(lambda: 1 // 0)


@pytest.mark.parametrize("text", ["1", "1.5", "null", '"a"', "[]", "[1]", "true"])
def test_a_vocabulary_that_is_no_object_is_refused(text, tmp_path):
    (tmp_path / "vocab.json").write_text(text)
    (tmp_path / "merges.txt").write_text("")
    with pytest.raises(FileError, match="an object was needed"):
        read_vocabulary(tmp_path)


@pytest.mark.parametrize("text", [
    '{"stamp": [1e999], "digest": "x"}', '{"stamp": 1}', "[]", '{"stamp": [null]}', "9" * 9999])
def test_a_kept_digest_that_is_none_is_no_error(text, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    home = identity._home(tmp_path / "m")
    paths.make_own(home.parent)
    home.write_text(text)
    assert identity._kept(tmp_path / "m") is None


EARLY = """
import os, signal, sys
from apr_tui.cli import main
text = "os.kill(os.getpid(), signal.SIGINT)"
main.on_cut_files = lambda handler: PRESS
sys.exit(main.main(["doctor"]))
"""


@pytest.mark.parametrize("press", ["os.kill(os.getpid(), signal.SIGINT)", "exec(text)"])
def test_an_interrupt_while_modules_are_imported_is_exit_130_and_no_signal(press, tmp_path):
    (tmp_path / "early.py").write_text(EARLY.replace("PRESS", press))
    done = subprocess.run([sys.executable, "-P", "-m", "early"], env=child_environment() | {
        "PYTHONPATH": f"{ROOT}:{tmp_path}"}, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "apr-tui: interrupted\n")
