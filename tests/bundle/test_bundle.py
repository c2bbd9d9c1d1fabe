"""A saved bundle opened again: the same numbers and bytes, and refused with the place where it was changed."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from core.bundle import tables
from core.bundle.csv_table import csv_text
from core.bundle.reader import read_bundle
from core.system.errors import FileError
from core.system.json_text import to_plain
from core.trace.hints import find_hints
from core.trace.values_file import open_values
from tests.support.bundles import TABLES, contents, rows, save, spiking
from tests.support.traces import cells_of, published_cells, trace_of, values

# opened again

@pytest.mark.parametrize("scope,n_token", [("all", 7), ("rest", 7), ("all", 1)])
def test_a_bundle_that_is_opened_and_written_again_has_the_same_bytes(tmp_path, scope, n_token):
    trace = spiking(n_token, generated="4", observed_equals_unobserved=True, notes=("a note",))
    first = save(trace, tmp_path / "a", scope)
    opened = read_bundle(first)
    again = save(opened, tmp_path / "b", scope)
    assert contents(again, [*TABLES, "manifest.json"]) == contents(first, [*TABLES, "manifest.json"])
    assert replace(opened, cells={}, values=None) == replace(trace, cells={})
    assert find_hints(opened, scope=scope) == find_hints(trace, scope=scope)
    assert json.loads((first / "findings.json").read_text()) == to_plain(find_hints(trace, scope=scope))


def test_a_cell_that_is_opened_again_has_its_tokens_top_channels_and_factors(tmp_path):
    trace = spiking()
    opened = read_bundle(save(trace, tmp_path / "a"))
    was, found = trace.cells[3, "ffn_swigl"], opened.cells[3, "ffn_swigl"]
    assert (found.top, found.massive, found.factors) == (was.top, was.massive, was.factors)
    for place, cell in trace.cells.items():
        for token in range(7):
            assert opened.cells[place].at(f"pos:{token}") == cell.at(f"pos:{token}"), (place, token)


def test_std_and_l2_of_any_size_come_back_to_the_last_bit():
    rng = np.random.default_rng(3)
    m2 = rng.random(20000) * 10.0 ** rng.integers(-60, 60, 20000)
    n = rng.integers(2, 20000, 20000)
    std = np.sqrt(m2 / (n - 1))
    assert (np.sqrt(tables._squares(std, n) / (n - 1)) == std).all()


def test_a_verdicts_numbers_stand_as_python_writes_them_and_a_bundles_shortest():
    columns = {"layer": [0, None], "stage": ["qkv", "logits"], "nmse": [1e-07, None], "floor": [math.inf, math.nan]}
    assert csv_text(columns, as_text=True) == "layer,stage,nmse,floor\n0,qkv,1e-07,inf\n,logits,,nan\n"
    assert csv_text(columns) == "layer,stage,nmse,floor\n0,qkv,1e-7,inf\n,logits,,NaN\n"
    assert csv_text({"layer": [], "nmse": []}, as_text=True) == csv_text({"layer": [], "nmse": []}) == "layer,nmse\n"


def test_a_source_of_scopes_comes_back_with_its_scopes_only(tmp_path):
    trace = trace_of(published_cells())
    opened = read_bundle(save(trace, tmp_path / "a"))
    assert opened.cells == trace.cells and find_hints(opened)[0].place == (3, "ffn_swigl")
    assert rows(tmp_path / "a" / "tokens.csv") == []
    assert {r["scope"] for r in rows(tmp_path / "a" / "stats.csv")} == {"all"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64"])
def test_values_are_kept_as_computed_and_read_when_asked(tmp_path, dtype):
    x = {place: value.astype(dtype) for place, value in values().items()}
    out = save(trace_of(cells_of(x), values=x), tmp_path / "a", keep=True)
    found = read_bundle(out).values
    assert set(found) == set(x)
    for place in x:
        assert found[place].dtype == x[place].dtype and (found[place] == x[place]).all()
    stated = json.loads((out / "manifest.json").read_text())["sha256"]["values.safetensors"]
    assert stated == hashlib.sha256((out / "values.safetensors").read_bytes()).hexdigest()


def test_the_values_file_is_one_that_safetensors_reads(tmp_path):
    from safetensors.numpy import load_file

    x = values(n_layer=2)
    out = save(trace_of(cells_of(x), values=x), tmp_path / "a", keep=True)
    found = load_file(out / "values.safetensors")
    assert set(found) == {stage if layer is None else f"{layer}.{stage}" for layer, stage in x}
    assert (found["1.ffn_up"] == x[1, "ffn_up"]).all() and found["logits"].shape == (1, 64)


def test_bfloat16_values_keep_their_bits(tmp_path):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    x = torch.tensor([[1.0, -2.5, 3e38, float("inf"), 1e-40, float("nan"), 0.1]]).bfloat16()
    out = save(trace_of(cells_of(values()), values={(0, "qkv"): x}), tmp_path / "a", keep=True)
    found = load_file(out / "values.safetensors")["0.qkv"]
    assert torch.equal(found.view(torch.int16), x.view(torch.int16))
    assert np.array_equal(read_bundle(out).values[0, "qkv"], x.float().numpy(), equal_nan=True)


# refused

@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save(spiking(), tmp_path_factory.mktemp("saved") / "a")


@pytest.fixture
def copied(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "a"))


def change(folder, name, edit, resign=True):
    """Edit a file of a bundle; resign: the manifest's sha256 follows, as if it had been written so."""
    path = folder / name
    path.write_bytes(edit(path.read_bytes()))
    if resign and name != "manifest.json":
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["sha256"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("name,edit,said", [
    ("stats.csv", lambda b: b.replace(b"layer,stage", b"layer,where", 1), "line 1: columns layer, where"),
    ("stats.csv", lambda b: b.replace(b"\n0,attn_norm,all,448", b"\n0,attn_norm,all,x", 1), "column count: found 'x'"),
    ("stats.csv", lambda b: b.replace(b"\n0,qkv,all,", b"\n0,qvk,all,", 1), "line 10: 'qvk' is not a stage"),
    ("stats.csv", lambda b: b.replace(b"\n0,qkv,last,", b"\n0,qkv,all,", 1), "line 11: qkv at scope all stands there"),
    ("stats.csv", lambda b: b.replace(b"\n0,qkv,last,", b"\n0,qkv,some,", 1), "line 11: 'some' is not a scope"),
    ("stats.csv", lambda b: b.replace(b"\n0,qkv,last,", b"\n-1,qkv,last,", 1), "line 11, column layer: found '-1'"),
    ("stats.csv", lambda b: b.replace(b"\n0,qkv,last,", b"\n99999999999,qkv,last,", 1), "line 11, column layer"),
    ("stats.csv", lambda b: b"", "is not a CSV table"),
    ("stats.csv", lambda b: np.random.default_rng(0).bytes(3000), "stats.csv"),
    ("stats.csv", lambda b: b[:-300] + b'"', "is not a CSV table|line"),
    ("tokens.csv", lambda b: b.replace(b"\n0,qkv,3,", b"\n0,qkv,4,", 1), "tokens must stand once, in order"),
    ("tokens.csv", lambda b: b.replace(b"\n0,qkv,3,103,64", b"\n0,qkv,3,103,65", 1), "with one count"),
    ("tokens.csv", lambda b: b.replace(b"\n0,qkv,3,", b"\n0,qkv,,", 1), "column token: found None"),
    ("tokens.csv", lambda b: b.replace(b"\n6,output,", b"\n7,output,"), "stats.csv has none"),
    ("manifest.json", lambda b: b.replace(b"apr-tui/1", b"apr-tui/9"), "'apr-tui/9'; this build reads apr-tui/1"),
    ("manifest.json", lambda b: b[:100], "not a JSON document"),
    ("manifest.json", lambda b: b"[]", "schema None"),
    ("manifest.json", lambda b: b"[" * 100000, "not a JSON document"),
    ("manifest.json", lambda b: b.replace(b'"n_layer": 28', b'"n_layer": "many"'), "'n_layer' is str, int was needed"),
    ("manifest.json", lambda b: b.replace(b'"id": 101', b'"id": NaN'), "NaN is not JSON"),
    ("manifest.json", lambda b: b.replace(b'"id": 101', b'"id": "x"'), "key 'tokens'"),
    ("manifest.json", lambda b: b.replace(b'"id": 101', b'"id": 101%s' % (b"0" * 400)), "an id that no vocabulary has"),
    ("manifest.json", lambda b: b.replace(b'"3.ffn_swigl": {', b'"x.ffn_swigl": {'), "key 'channels'"),
    ("manifest.json", lambda b: b.replace(b'"3.ffn_swigl": {', b'"3.speed": {'), "'speed' is not a stage"),
    ("manifest.json", lambda b: b.replace(b'"3.ffn_swigl": {', b'"%s.qkv": {' % (b"9" * 5000)), "is not a place"),
    ("manifest.json", lambda b: b.replace(b'"scopes": [', b'"scopes": ["some"'), "'some' is not a scope"),
    ("manifest.json", lambda b: b.replace(b'"n_layer": 28', b'"n_layer": 4000000000'), "'n_layer' is 4000000000"),
    ("manifest.json", lambda b: b.replace(b'"origin": {', b'"origin": {"printed_decimals": "4", '),
     "origin: key 'printed_decimals'"),
    ("manifest.json", lambda b: b.replace(b'"logit": ', b'"logit": 1%s, "x": ' % (b"0" * 400), 1),
     "key 'top': a number has more digits"),
    ("manifest.json", lambda b: b.replace(b'[4, 0, 150.5]', b'[4, 0]'), "key 'channels' is damaged"),
    ("manifest.json", lambda b: b.replace(b'"median": 0.05, ', b''), "key 'channels' is damaged"),
])
def test_a_damaged_bundle_is_refused_with_the_place(copied, name, edit, said):
    change(copied, name, edit)
    with pytest.raises(FileError, match=said) as told:
        read_bundle(copied)
    assert str(copied) in str(told.value)


@pytest.mark.parametrize("name", ["stats.csv", "tokens.csv", "findings.json"])
def test_a_number_changed_after_the_fact_is_refused(copied, name):
    change(copied, name, lambda b: b.replace(b"1", b"2", 1), resign=False)
    with pytest.raises(FileError, match=f"{name} was changed after it was written"):
        read_bundle(copied)


@pytest.mark.parametrize("name", ["stats.csv", "tokens.csv", "findings.json", "manifest.json"])
def test_a_trimmed_bundle_is_refused_with_the_missing_file(copied, name):
    (copied / name).unlink()
    with pytest.raises(FileError, match=f"{name} could not be read"):
        read_bundle(copied)


def test_a_values_file_with_a_name_that_is_no_place_is_a_damaged_file(tmp_path):
    from safetensors.numpy import save_file

    save_file({"3.speed": np.zeros((1, 2), np.float32)}, tmp_path / "values.safetensors")
    with pytest.raises(FileError, match=r"'speed' is not a stage.*Trace again with --values"):
        open_values(tmp_path / "values.safetensors")


def test_a_damaged_values_file_is_refused(tmp_path):
    x = values(n_layer=2)
    out = save(trace_of(cells_of(x), values=x), tmp_path / "a", keep=True)
    data = (out / "values.safetensors").read_bytes()
    for bad in (b"", data[:40], data[:-1], b"\xff" * 16):
        (out / "values.safetensors").write_bytes(bad)
        with pytest.raises(FileError, match="safetensors"):
            read_bundle(out)
