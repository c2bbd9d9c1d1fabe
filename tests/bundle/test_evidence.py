"""The bundle: its columns and bytes, whole or absent, opened again as it was, and refused where it was changed."""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.bundle import writer
from core.bundle.reader import read_bundle
from core.bundle.writer import validate_csv, write_wide_csv
from core.model.stages import GRID_STAGES, SCOPES
from core.system.atomic_file import new_file
from core.system.atomic_folder import check_out, new_folder
from core.system.errors import OutputError, UsageError
from core.trace.hints import find_hints
from core.trace.record import NextToken, Token
from core.trace.stats import TokenStats
from tests.support.bundles import TABLES, contents, rows, save, spiking
from tests.support.traces import cells_of, trace_of, values

STATS = ["layer", "stage", "scope", "count", "mean", "std", "min", "max", "absmax", "l2", "nan", "inf", "zero",
         "peak_token", "peak_channel", "nan_token", "nan_channel"]
MERGE_ERROR = 1e-9  # relative: what the contract allows


# what is written

def test_a_bundle_has_every_file_and_column_of_the_contract(tmp_path):
    out = save(spiking(), tmp_path / "a")
    assert sorted(p.name for p in out.iterdir()) == sorted([*TABLES, "manifest.json"])
    assert list(rows(out / "stats.csv")[0]) == STATS
    assert list(rows(out / "grid-std.csv")[0]) == ["layer", *GRID_STAGES]
    want = ["layer", "stage", "token", "token_id", *(s for s in STATS[3:] if s != "peak_token")]
    assert list(rows(out / "tokens.csv")[0]) == want


def test_every_cell_has_its_four_scopes_in_order_and_the_logits_only_the_last(tmp_path):
    found = [(r["layer"], r["stage"], r["scope"]) for r in rows(save(spiking(), tmp_path / "a") / "stats.csv")]
    assert found[:5] == [("", "embedding", s) for s in SCOPES] + [("0", "attn_norm", "all")]
    assert found[-1] == ("", "logits", "last") and found[-2] == ("", "final_norm", "rest")
    for layer in range(7):
        assert {(str(layer), stage, scope) for stage in GRID_STAGES for scope in SCOPES} <= set(found)
    assert len(found) == len(set(found))


def test_one_token_has_no_row_for_the_rest(tmp_path):
    found = rows(save(spiking(1), tmp_path / "a") / "stats.csv")
    assert {r["scope"] for r in found} == {"all", "last", "first"}
    assert [r["scope"] for r in found if r["stage"] == "logits"] == ["last"]


def test_the_token_rows_merge_to_the_row_of_scope_all(tmp_path):
    out = save(spiking(), tmp_path / "a")
    cells = {(r["layer"], r["stage"]): r for r in rows(out / "stats.csv") if r["scope"] == "all"}
    tokens = {}
    for r in rows(out / "tokens.csv"):
        tokens.setdefault((r["layer"], r["stage"]), []).append(r)
    for place, found in tokens.items():
        if place[1] == "logits" or place in (("5", "qkv"), ("6", "qkv")):
            continue
        n = sum(int(r["count"]) for r in found)
        mean = sum(int(r["count"]) * float(r["mean"]) for r in found) / n
        squares = sum((int(r["count"]) - 1) * float(r["std"]) ** 2 + int(r["count"]) * (float(r["mean"]) - mean) ** 2
                      for r in found)
        want = float(cells[place]["std"])
        assert abs(math.sqrt(squares / (n - 1)) - want) <= MERGE_ERROR * want, place


def test_every_float_comes_back_to_the_last_bit_and_none_is_empty(tmp_path):
    trace = spiking()
    for row in rows(save(trace, tmp_path / "a") / "stats.csv"):
        stats = trace.cells[int(row["layer"]) if row["layer"] else None, row["stage"]].at(row["scope"])
        for name in STATS[3:]:
            want = getattr(stats, name)
            assert (row[name] == "") if want is None else (type(want)(row[name]) == want), (row, name, want)


def test_a_token_with_nothing_finite_has_counts_and_empty_numbers(tmp_path):
    out = save(spiking(), tmp_path / "a")
    row = next(r for r in rows(out / "tokens.csv") if (r["layer"], r["stage"], r["token"]) == ("6", "qkv", "0"))
    assert [row[n] for n in ("mean", "std", "min", "max", "absmax", "l2", "peak_channel", "nan_token")] == [""] * 8
    assert (row["count"], row["inf"], row["nan"], row["token_id"]) == ("64", "64", "0", "100")
    row = next(r for r in rows(out / "tokens.csv") if (r["layer"], r["stage"], r["token"]) == ("5", "qkv", "2"))
    assert (row["nan"], row["nan_token"], row["nan_channel"]) == ("1", "2", "4")


def test_the_wide_csv_is_the_bundles_grid_at_the_scope(tmp_path):
    trace = spiking()
    for scope in ("all", "rest"):
        out = save(trace, tmp_path / scope, scope)
        write_wide_csv(tmp_path / "wide.csv", trace, scope)
        assert (tmp_path / "wide.csv").read_bytes() == (out / "grid-std.csv").read_bytes()
        row = rows(out / "grid-std.csv")[3]
        assert float(row["ffn_swigl"]) == trace.cells[3, "ffn_swigl"].at(scope).std and row["layer"] == "3"


def test_the_same_trace_gives_the_same_bytes(tmp_path):
    first = save(spiking(), tmp_path / "a", time="now")
    again = save(spiking(), tmp_path / "b", time="later")
    assert contents(first) == contents(again)


def test_no_file_but_the_manifest_holds_the_command(tmp_path):
    out = save(spiking(), tmp_path / "a")
    assert [p.name for p in out.iterdir() if b"apr-tui trace" in p.read_bytes()] == ["manifest.json"]


def test_the_manifest_states_how_the_numbers_were_taken(tmp_path):
    out = save(spiking(), tmp_path / "a", durations={"trace_ms": 12.5})
    found = json.loads((out / "manifest.json").read_text())
    assert found["schema"] == "apr-tui/1" and found["model"] == "tiny.gguf" and found["scope"] == "all"
    assert found["tokens"][1] == {"id": 101, "text": "t1"} and found["witness"] == "NOT_MEASURED"
    assert (found["arch"], found["compute"], found["threads"], found["seed"]) == ("qwen2", "f32", 2, 7)
    assert found["command"] == "apr-tui trace tiny.gguf" and found["durations"] == {"trace_ms": 12.5}
    assert found["versions"]["numpy"] == np.__version__ and found["planted"] is None
    assert found["sha256"] == {n: hashlib.sha256(b).hexdigest() for n, b in contents(out).items()}


@pytest.mark.parametrize("witness,said", [(True, "yes, bit for bit"), (False, "NO"), (None, "NOT_MEASURED")])
def test_the_report_says_what_the_witness_saw(tmp_path, witness, said):
    out = save(spiking(observed_equals_unobserved=witness), tmp_path / "a")
    assert f"Traced equals untraced: {said}" in (out / "report.txt").read_text()


def test_a_planted_bundle_says_so_everywhere_a_person_looks(tmp_path):
    out = save(spiking(planted="scale@4.attn_out"), tmp_path / "a")
    for name in ("report.txt", "report.md", "report.html"):
        assert "PLANTED" in (out / name).read_text()
    assert json.loads((out / "manifest.json").read_text())["planted"] == "scale@4.attn_out"


def test_the_report_has_grid_findings_next_tokens_and_notes(tmp_path):
    trace = spiking(notes=("no tokenizer in the file",))
    text = (save(trace, tmp_path / "a") / "report.txt").read_text()
    assert "X" in text and "Note: no tokenizer in the file" in text and "'four'" in text and "3:103 't3'" in text
    sentence = find_hints(trace)[0].sentence
    assert sentence in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80


def test_text_from_a_file_cannot_steer_a_terminal(tmp_path):
    evil = "\x1b[31mred\x07\u202etxt\ud800\x9b2J\x7f\u2028|`"
    trace = replace(spiking(planted=evil, notes=(evil,), generated=evil, top=(NextToken(1, evil, 1.0),)), name=evil,
                    tokens=(Token(1, evil),) * 7)
    for path in save(trace, tmp_path / "a").iterdir():
        text = path.read_text(encoding="utf-8").replace("\n", "")
        assert text.isprintable(), (path.name, [c for c in text if not c.isprintable()])
    assert read_bundle(tmp_path / "a").tokens[0].text == evil


# whole or absent

def test_an_existing_bundle_is_left_alone_without_force(tmp_path):
    out = save(spiking(), tmp_path / "a")
    before = contents(out, [*TABLES, "manifest.json"])
    for attempt in (lambda: save(spiking(3), out), lambda: check_out(out, force=False)):
        with pytest.raises(UsageError, match="--force"):
            attempt()
    assert contents(out, [*TABLES, "manifest.json"]) == before


def test_force_replaces_a_bundle_and_leaves_nothing_beside_it(tmp_path):
    out = save(spiking(values={(0, "qkv"): np.zeros((7, 4), np.float32)}), tmp_path / "a", keep=True)
    assert (out / "values.safetensors").is_file()
    save(spiking(3), out, force=True)
    assert len(read_bundle(out).tokens) == 3 and not (out / "values.safetensors").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_that_is_no_bundle_is_never_replaced(tmp_path, force):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("x")
    with pytest.raises(UsageError, match="not a bundle"):
        save(spiking(), tmp_path / "home", force=force)
    with pytest.raises(UsageError):
        save(spiking(), tmp_path / "home" / "thesis.txt", force=force)
    assert (tmp_path / "home" / "thesis.txt").read_text() == "x"


def refused(out, says):
    """Force, as asked before the work and after it, leaves every file of a folder as it is, and names what it found."""
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    for attempt in (lambda: save(spiking(3), out, force=True), lambda: check_out(out, force=True)):
        with pytest.raises(UsageError, match=says):
            attempt()
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(("manifest", "says"), [
    ('{"name": "My web app"}', "the schema of its manifest.json is None"),
    ('{"schema": "apr-tui-train/1"}', "'apr-tui-train/1'"), ('{"schema": "my-apr-tui/1"}', "'my-apr-tui/1'"),
    ('{"schema": ["apr-tui/1"]}', "schema"), ("[]", "schema"), ("{", "cannot be read"), ("[" * 100_000, "cannot be")])
def test_force_leaves_a_folder_with_the_manifest_of_something_else(tmp_path, manifest, says):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text(manifest)
    (tmp_path / "app" / "thesis.txt").write_text("x")
    refused(tmp_path / "app", says)


def test_force_leaves_a_bundle_that_holds_anything_of_somebody_else(tmp_path):
    out = save(spiking(), tmp_path / "a")
    (out / "notes.txt").write_text("mine")
    refused(out, "it holds notes.txt, which apr-tui did not write")
    (out / "notes.txt").unlink()
    (out / "a").mkdir()
    (out / "a" / "thesis.txt").write_text("mine")
    refused(out, "it holds the folder a, which")
    (out / "a" / "thesis.txt").unlink()
    (out / "a").rmdir()
    (out / "report.md").rename(tmp_path / "elsewhere.md")
    (out / "report.md").symlink_to(tmp_path / "elsewhere.md")
    refused(out, "it holds report.md")
    (out / "report.md").unlink()
    save(spiking(3), out, force=True)


def test_a_file_that_comes_while_a_bundle_is_written_is_kept(tmp_path, monkeypatch):
    out, real = save(spiking(), tmp_path / "a"), writer.manifest_text

    def slow(*args):
        (out / "notes.txt").write_text("mine")
        return real(*args)

    monkeypatch.setattr(writer, "manifest_text", slow)
    with pytest.raises(UsageError, match=r"notes\.txt"):
        save(spiking(3), out, force=True)
    assert (out / "notes.txt").read_text() == "mine" and len(read_bundle(out).tokens) == 7


def test_a_grid_is_written_over_a_grid_and_over_nothing_else(tmp_path):
    path = tmp_path / "grid.csv"
    for text, is_held in (("", False), (None, False), ("GGUF and weights", True), ("layer,mine\n", True), ("l", True)):
        if text is None:
            write_wide_csv(path, spiking(), "all")
        else:
            path.write_text(text)
        validate_csv(path, force=True)
        if is_held:
            with pytest.raises(UsageError, match="is no grid of apr-tui"):
                validate_csv(path, force=False)
        else:
            validate_csv(path, force=False)


def test_a_file_that_comes_while_another_is_written_is_kept_and_no_device_is_replaced(tmp_path):
    with pytest.raises(UsageError, match="exists already"), new_file(tmp_path / "m.gguf"):
        (tmp_path / "m.gguf").write_text("mine")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["mine"]
    os.mkfifo(tmp_path / "p.gguf")
    with pytest.raises(UsageError, match="a device or a pipe"), new_file(tmp_path / "p.gguf", force=True):
        pass
    assert (tmp_path / "p.gguf").is_fifo()


def test_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "a").mkdir()
    assert read_bundle(save(spiking(), tmp_path / "a")).n_layer == 7


def test_folders_above_are_made(tmp_path):
    assert (save(spiking(), tmp_path / "x" / "y" / "a") / "stats.csv").exists()


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize("broken", ["manifest_text", "page_markdown", "tokens_csv"])
def test_a_full_disk_leaves_nothing_behind_and_the_old_bundle_as_it_was(tmp_path, monkeypatch, broken, force):
    out = tmp_path / "deep" / "a"
    if force:
        save(spiking(3), out)

    def full(*args, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, broken, full)
    with pytest.raises(OutputError, match="No space left"):
        save(spiking(), out, force=force)
    if force:
        assert len(read_bundle(out).tokens) == 3 and [p.name for p in out.parent.iterdir()] == ["a"]
    else:
        assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told_by_the_name_that_was_asked_for_though_a_folder_within_met_it(tmp_path, monkeypatch):
    def full(*args, **more):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(writer, "manifest_text", full)
    with pytest.raises(OutputError) as told, new_folder(tmp_path / "verdict", force=False) as part:
        save(spiking(), part / "trace")
    assert str(told.value).startswith(f"{tmp_path / 'verdict'} could not be written: No space left")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_while_writing_leaves_nothing_behind(tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, "manifest_text", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save(spiking(), tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_full_device_is_told(tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(OutputError, match="No space left"):
        write_wide_csv(Path("/dev/full"), spiking(), "all")


def test_a_folder_that_cannot_be_made_is_told_before_the_work(tmp_path):
    (tmp_path / "file").write_text("x")
    for attempt in (lambda o: check_out(o, force=False), lambda o: save(spiking(), o),
                    lambda o: write_wide_csv(o, spiking(), "all")):
        with pytest.raises(OutputError):
            attempt(tmp_path / "file" / "a")
    if Path("/proc/self").exists():
        with pytest.raises(OutputError):
            check_out(Path("/proc/nowhere/x"), force=False)
    check_out(tmp_path / "new" / "a", force=False)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_the_present_folder_as_output_is_tried_beside_itself(tmp_path, monkeypatch):
    made = []
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with monkeypatch.context() as here:
        here.setattr(Path, "mkdir", lambda probe: made.append(probe))
        here.setattr(Path, "rmdir", lambda probe: None)
        check_out(Path("."), force=False)
    assert [probe.parent for probe in made] == [tmp_path]


def test_a_long_trace_is_written_in_columns_not_cell_by_cell():
    x = values(n_token=200, n_layer=4)
    text = writer.tokens_csv(trace_of(cells_of(x, 200), 200))
    found = list(csv.DictReader(io.StringIO(text)))
    assert len(found) == sum(len(v) for v in x.values())
    last = found[-1]
    assert (last["layer"], last["stage"], last["token"], last["token_id"]) == ("", "logits", "199", "299")
    assert isinstance(cells_of(x, 200)[0, "qkv"], TokenStats)
