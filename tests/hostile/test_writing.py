"""What is written is whole or absent, whoever shares the folder, whenever the process is killed or the power fails."""

import errno
import os
import re
import stat
import subprocess
import sys
from dataclasses import replace

import pytest

from apr_tui.cli import main as command
from core.demo import files as demo
from core.system import atomic_folder, disk, rests
from core.system.atomic_file import new_file
from core.system.atomic_folder import new_folder
from core.system.child import child_environment
from core.system.errors import OutputError
from core.train.checkpoint import State, write_checkpoint
from core.train.config import PRESETS

DEAD = subprocess.run([sys.executable, "-S", "-c", "import os; print(os.getpid())"], capture_output=True, text=True,
                      check=True).stdout.strip()


def write_a_file(folder):
    with new_file(folder / "x", force=True) as part:
        part.write_text("new")


def write_a_folder(folder):
    with new_folder(folder / "b", force=True) as part:
        (part / "manifest.json").write_text('{"schema": "apr-tui/1"}')


WRITERS = {"file": write_a_file, "folder": write_a_folder}


def test_a_part_cannot_be_guessed_nor_be_a_link_of_somebody(tmp_path, monkeypatch):
    """A name that is drawn twice stands for one that somebody foresaw: each kind of thing may stand there."""
    victim = tmp_path / "victim"
    victim.write_text("mine")
    monkeypatch.setattr(rests.os, "urandom", lambda n: b"\1" * n)
    part = rests.own_name(tmp_path / "x", rests.PART)
    for plant in (lambda: part.symlink_to(victim), lambda: part.symlink_to(tmp_path / "nothing"),
                  lambda: os.link(victim, part), lambda: os.mkfifo(part)):
        plant()
        with pytest.raises(OutputError):
            write_a_file(tmp_path)
        assert victim.read_text() == "mine" and not (tmp_path / "nothing").exists() and not (tmp_path / "x").exists()
        assert os.path.lexists(part)
        part.unlink()
    folder = rests.own_name(tmp_path / "b", rests.PART)
    folder.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(OutputError):
        write_a_folder(tmp_path)
    assert victim.read_text() == "mine"


def test_a_name_has_sixty_four_bits_nobody_knows(tmp_path):
    drawn = {rests.own_name(tmp_path / "x", "part").name for _ in range(100)}
    assert len(drawn) == 100 and all(re.search(r"-[0-9a-f]{16}\.part$", name) for name in drawn)
    assert len(rests.own_name(tmp_path / ("n" * 255), "part").name) <= 255


def test_the_log_of_an_internal_error_follows_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "state_folder", lambda: tmp_path)
    monkeypatch.setattr(command.os, "urandom", lambda n: b"\1" * n)
    victim = tmp_path / "victim"
    victim.write_text("mine")
    written = command.write_log(RuntimeError("x"))
    written.unlink()
    written.symlink_to(victim)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "none"))
    command.write_log(RuntimeError("x"))
    assert victim.read_text() == "mine"


def leave(folder, name, pid, ending="part", is_folder=False, machine=None):
    path = folder / f".{name}.{machine or rests._machine()}-{pid}-{'0' * 16}.{ending}"
    if is_folder:
        path.mkdir()
        (path / "half").write_text("x")
    else:
        path.write_text("half")
    return path


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_killed_process_left_is_gone_after_the_next_run(writer, tmp_path):
    for i, (ending, is_folder) in enumerate([("part", False), ("part", True), ("old", False), ("old", True)]):
        leave(tmp_path, f"other{i}", DEAD, ending, is_folder)
        if ending == "old":
            (tmp_path / f"other{i}").write_text("the new one")
    WRITERS[writer](tmp_path)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_what_is_not_ours_or_still_written_is_left(tmp_path, monkeypatch):
    kept = [leave(tmp_path, "a", os.getpid()), leave(tmp_path, "b", os.getppid()), leave(tmp_path, "c", 1),
            leave(tmp_path, "d", DEAD, machine="ffffff")]
    names = [".x.part", ".hidden", "x.part", f".x.{DEAD}.1.part", ".x.abcdef123456.part"]
    for name in names:
        (tmp_path / name).write_text("theirs")
    link = leave(tmp_path, "e", DEAD)
    link.unlink()
    link.symlink_to(tmp_path / "x.part")
    write_a_file(tmp_path)
    assert all(path.exists() for path in (*kept, link)) and {*names} <= {*os.listdir(tmp_path)}
    monkeypatch.setattr(rests.os, "getuid", lambda: 54321)
    mine = leave(tmp_path, "f", DEAD)
    rests.sweep(tmp_path)
    assert mine.exists()


def test_a_later_process_of_the_same_id_keeps_no_rest(tmp_path, monkeypatch):
    rest = leave(tmp_path, "a", os.getppid())
    os.utime(rest, (1, 1))
    rests.sweep(tmp_path)
    assert not rest.exists()


def test_what_was_moved_aside_comes_back_where_nothing_took_its_place(tmp_path):
    aside = leave(tmp_path, "b", DEAD, "old", is_folder=True)
    rests.sweep(tmp_path)
    assert not aside.exists() and (tmp_path / "b" / "half").read_text() == "x"


def test_a_folder_is_replaced_by_one_exchange(tmp_path, monkeypatch):
    """At no moment is there nothing under the name: watched at each call that could change it."""
    write_a_folder(tmp_path)
    seen = []
    for module, name in ((os, "rename"), (os, "replace"), (atomic_folder, "exchange")):
        real = getattr(module, name)

        def watched(*args, real=real, name=name):
            seen.append(((tmp_path / "b" / "manifest.json").exists(), name))
            done = real(*args)
            seen.append(((tmp_path / "b" / "manifest.json").exists(), name))
            return done

        monkeypatch.setattr(module, name, watched)
    write_a_folder(tmp_path)
    assert seen == [(True, "exchange")] * 2, "this file system has no exchange" if len(seen) > 2 else seen
    assert os.listdir(tmp_path) == ["b"]


def test_without_an_exchange_two_renames_do_and_lose_nothing(tmp_path, monkeypatch):
    write_a_folder(tmp_path)
    monkeypatch.setattr(atomic_folder, "exchange", lambda left, right: False)
    write_a_folder(tmp_path)
    assert os.listdir(tmp_path) == ["b"]
    real = os.rename

    def fail_once(left, right, calls=[]):  # noqa: B006
        calls.append(1)
        if len(calls) == 2:
            raise OSError(errno.EIO, "no")
        real(left, right)

    monkeypatch.setattr(atomic_folder.os, "rename", fail_once)
    with pytest.raises(OutputError):
        write_a_folder(tmp_path)
    assert os.listdir(tmp_path) == ["b"] and (tmp_path / "b" / "manifest.json").exists()


@pytest.mark.parametrize("number,said", [(errno.EINVAL, False), (errno.ENOSYS, False), (errno.EIO, None)])
def test_a_file_system_without_exchange_says_so_and_others_fail(number, said, tmp_path, monkeypatch):
    monkeypatch.setattr(disk.ctypes, "get_errno", lambda: number)
    if said is None:
        with pytest.raises(OSError, match=os.strerror(number)):
            disk.exchange(tmp_path / "no", tmp_path / "none")
    else:
        assert disk.exchange(tmp_path / "no", tmp_path / "none") is said


def a_checkpoint(folder):
    import torch

    arch = replace(PRESETS["tiny"], n_layer=1, d_model=8, n_head=2, n_kv_head=1, d_ff=8, n_vocab=16).arch()
    weights = {"token_embd.weight": torch.zeros(arch.n_vocab, arch.d_model)}
    write_checkpoint(folder, 1, State(weights, {}, {"steps_done": 1}), arch, None, None, "x")


POWER = {"a file": write_a_file, "a folder": write_a_folder, "a conversion": lambda f: demo.write_demo(f / "d"),
         "a checkpoint": a_checkpoint}


@pytest.mark.parametrize("writer", POWER)
def test_every_byte_is_on_the_disk_before_the_rename_and_the_name_after_it(writer, tmp_path, monkeypatch):
    """Each rename into place is told of with what was synced before it, and what after."""
    monkeypatch.delenv(disk.NO_FSYNC, raising=False)
    order = []
    real_sync, real_open = os.fsync, os.open
    names = {}

    def opened(path, *more, **named):
        number = real_open(path, *more, **named)
        names[number] = os.path.realpath(path)
        return number

    def synced(number):
        order.append(("sync", names[number]))
        real_sync(number)

    monkeypatch.setattr(disk.os, "fsync", synced)
    monkeypatch.setattr(disk.os, "open", opened)
    for name, real in (("rename", os.rename), ("replace", os.replace)):
        def renamed(left, right, real=real):
            inside = [os.path.join(p, n) for p, _, ns in os.walk(left) for n in ns] if os.path.isdir(left) else [left]
            order.append(("rename", [os.path.realpath(p) for p in inside], os.path.realpath(right)))
            real(left, right)

        monkeypatch.setattr(os, name, renamed)
    POWER[writer](tmp_path)
    moves = [i for i, event in enumerate(order) if event[0] == "rename"]
    assert moves
    for i in moves:
        before = {name for kind, name, *_ in order[:i] if kind == "sync"}
        after = {name for kind, name, *_ in order[i:] if kind == "sync"}
        assert {*order[i][1]} <= before, order
        assert os.path.dirname(order[i][2]) in after, order


def test_the_switch_leaves_the_forcing_out(tmp_path, monkeypatch):
    monkeypatch.setenv(disk.NO_FSYNC, "1")
    monkeypatch.setattr(disk.os, "fsync", lambda n: pytest.fail("synced"))
    write_a_folder(tmp_path)


def test_a_disk_that_fails_to_take_it_is_an_output_error(tmp_path, monkeypatch):
    monkeypatch.delenv(disk.NO_FSYNC, raising=False)

    def fail(number):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk.os, "fsync", fail)
    for write in WRITERS.values():
        with pytest.raises(OutputError, match="Input/output"):
            write(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_demonstration_that_fails_leaves_no_folder(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OutputError("no room")

    for name in ("write_gguf", "write_apr"):
        with monkeypatch.context() as patch:
            patch.setattr(demo, name, full)
            with pytest.raises(OutputError):
                demo.write_demo(tmp_path / "a" / "b")
            assert name == "write_apr" or os.listdir(tmp_path) == []


def test_what_is_written_has_the_user_s_usual_mode(tmp_path):
    write_a_file(tmp_path)
    (tmp_path / "usual").write_text("")
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == stat.S_IMODE((tmp_path / "usual").stat().st_mode)


FULL = [("--help",), ("--version",), ("trace", "--help"), ("train", "--help"), ("doctor",), ("doctor", "--json")]


@pytest.mark.parametrize("words", FULL)
def test_a_full_device_is_exit_7(words):
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-P", "-m", "apr_tui", *words], stdout=full, stderr=subprocess.PIPE,
                              text=True, env=child_environment(), timeout=60, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (7, 1), done.stderr
