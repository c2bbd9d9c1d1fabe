"""Reports: verdict first, numbers of the folder's tables, no text of a file obeyed, reopened as found."""

from __future__ import annotations

import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from apr_tui.cli.commands import normal_form
from apr_tui.cli.main import main
from core import session
from core.audit.audit_file import Audit
from core.audit.finding import Finding, Strength
from core.bundle.junit import validate_junit, write_junit
from core.bundle.trace_page import MOST_BYTES
from core.bundle.writer import validate_csv
from core.model.stages import GRID_STAGES
from core.proof.check_result import Check
from core.proof.verdict import Bisection, Comparison, LayerBisection, PatchResult, Verdict
from core.system.errors import FileError, OutputError, UsageError
from core.trace.measures import Difference, LocalError, State
from tests.support.bundles import rows, save, spiking
from tests.support.traces import cells_of, trace_of, values

EVIL = "</td><script>alert(1)</script>\x1b]52;c;x\x07<img src=x onerror=y>`|"


class Read(HTMLParser):
    """What a reader of the page sees: the words in order, the cells' numbers, anchors and links."""

    def __init__(self, path):
        super().__init__()
        self.words, self.data, self.anchors, self.links, self.tags = [], [], [], [], set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        told = dict(attrs)
        self.tags.add(tag)
        self.data += [told["value"]] if tag == "data" else []
        self.anchors += [told["id"]] if "id" in told else []
        self.links += [told["href"]] if "href" in told else []

    def handle_data(self, data):
        self.words += data.split("\n")


def pair(verdict=Verdict.H2, **more):
    trace = spiking(origin={"digest": "d"})
    cells = {(i, s): Difference(2.5e-8, 1.0, 1e-7, 0, 1, 0.0, 2.5e-8, 1e-6) for i in range(7) for s in GRID_STAGES}
    cells[3, "ffn_up"] = Difference(float("inf"), float("nan"), 12.5, 2, 4, 0.0, 0.25, 1e-6, State.DIFFERS)
    error = LocalError(0.5, 1e-15, 2, 4, "it is 2 times too large")
    return Comparison(verdict, ("a reason <b>", "another"), trace, replace(trace, name="b.gguf"), "all",
                      (3, "ffn_up"), 2, 4,
                      "B", 0.25, 1e-6, error, cells, **more)


def check():
    errors = {(i, s): LocalError(1e-15, 1e-15, 0, 0) for i in range(7) for s in GRID_STAGES}
    errors[4, "qkv"] = LocalError(0.25, 1e-15, 1, 3, "it is 1.5 times too large", ("attn_norm",))
    return Check(spiking(), errors, unmeasured=((6, "qkv"),))


def bisection():
    return Bisection(pair(), LayerBisection(0.5, (PatchResult((3, "ffn_up"), 0.0, 1.0),), 3))


def test_every_number_of_a_traces_page_is_that_of_its_table(tmp_path):
    out = save(spiking(), tmp_path / "a")
    page, table = Read(out / "report.html"), rows(out / "stats.csv")
    of_grid = [r["std"] for r in table if r["scope"] == "all" and r["stage"] in GRID_STAGES and r["std"]]
    assert sorted(page.data) == sorted(of_grid) and len(of_grid) > 60
    shown = set(page.words)
    assert all(number in shown for row in table for number in row.values() if number)


@pytest.mark.parametrize("judged,name,column", [(pair(), "cells.csv", "rel_l2"), (check(), "local.csv", "nmse"),
                                                (bisection(), "cells.csv", "rel_l2")])
def test_a_verdicts_page_begins_with_it_and_has_its_tables_numbers(tmp_path, judged, name, column):
    out = session.export(judged, tmp_path / "v", repeat="apr-tui compare a b")
    page, document = Read(out / "report.html"), json.loads((out / "verdict.json").read_text())
    words = [w for w in page.words if w.strip()]
    body = words[words.index("}", 1) + 1:] if "}" in words else words
    assert document["verdict"] in " ".join(body[:3])
    table = rows(out / name)
    assert sorted(page.data) == sorted(r[column] for r in table if r[column] and r["stage"] in GRID_STAGES)
    assert all(number in page.words for row in table for number in row.values() if number)
    around = [w for w in (out / "report.md").read_text().splitlines() if w.startswith("| ") and "**" in w]
    first = document["first"]
    assert f"**{first['stage'].replace('_', chr(92) + '_')}**" in around[-1]
    assert "    apr-tui compare a b" in (out / "report.md").read_text()
    assert set(page.links) >= {f"#{a}" for a in ("3.ffn_up",)} and set(page.anchors) >= {"3.ffn_up", "reasons"}
    assert all(link[1:] in page.anchors for link in page.links if link.startswith("#"))


def test_a_page_needs_no_script_and_no_network_and_obeys_no_text_of_a_file(tmp_path):
    evil = replace(pair(), reasons=(EVIL,), a=replace(spiking(), name=EVIL, planted=EVIL))
    out = session.export(evil, tmp_path / "v", repeat=f"apr-tui compare {EVIL}")
    for path in out.rglob("report.*"):
        text = path.read_text(encoding="utf-8")
        assert "\x1b" not in text and "\x07" not in text
        if path.suffix == ".html":
            page = Read(path)
            assert not page.tags & {"script", "img", "link", "iframe"} and "http" not in text.replace("http-equiv", "")
            assert "prefers-color-scheme:dark" in text


def test_a_page_of_48_layers_stays_within_a_mails_size_and_keeps_the_shown_scope(tmp_path):
    x = values(3, n_layer=48)
    trace = trace_of(cells_of({(i, f"{s}"): v for (i, s), v in x.items()}, 3), 3)
    out = save(trace, tmp_path / "a")
    assert len((out / "report.html").read_bytes()) <= MOST_BYTES
    assert save(trace, tmp_path / "b") and (tmp_path / "b" / "report.html").read_bytes() == (
        out / "report.html").read_bytes()


def test_a_page_too_large_keeps_the_shown_scope_alone_and_says_so(tmp_path, monkeypatch):
    whole = save(spiking(), tmp_path / "a") / "report.html"
    monkeypatch.setattr("core.bundle.trace_page.MOST_BYTES", 10)
    page = Read(save(spiking(), tmp_path / "b") / "report.html")
    assert any("stats.csv has the other scopes" in w for w in page.words)
    assert page.data == Read(whole).data and "first" not in page.words
    assert all(link[1:] in page.anchors for link in page.links if link.startswith("#"))


@pytest.mark.parametrize("judged", [pair(), check(), bisection()])
def test_a_verdicts_folder_is_opened_as_it_was_found(tmp_path, judged, capsys):
    out = session.export(judged, tmp_path / "v")
    again = session.open_judged(out)
    assert type(again) is type(judged)
    left, right = (j.comparison if isinstance(j, Bisection) else j for j in (judged, again))
    assert (left.verdict, left.reasons, left.first) == (right.verdict, right.reasons, right.first)
    assert repr(left.cells if isinstance(left, Comparison) else left.errors) == repr(
        right.cells if isinstance(right, Comparison) else right.errors)  # nan is not itself
    assert main(["show", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "verdict.json").read_text())
    (out / "judged.json").write_text((out / "judged.json").read_text().replace("2", "3", 1))
    with pytest.raises(FileError, match="was changed"):
        session.open_judged(out)
    assert session.export(judged, out, force=True) == out  # what it wrote itself it may replace


def test_junit_fails_where_a_bug_is_and_is_in_error_where_nothing_is_proved(tmp_path):
    unsure = replace(pair(), verdict=Verdict.INCONCLUSIVE)
    write_junit(tmp_path / "j.xml", [pair(), check(), unsure, pair(Verdict.H3)])
    suites = ElementTree.parse(tmp_path / "j.xml").getroot()
    failures = [[c.get("name") for c in s.findall("testcase") if c.find("failure") is not None] for s in suites]
    assert failures == [["verdict", "3.ffn_up"], ["verdict", "4.qkv"], [], []]
    assert [s.get("errors") for s in suites] == ["0", "0", "1", "0"] and suites[1].get("skipped") == "1"
    assert all(int(s.get("tests")) == len(s.findall("testcase")) for s in suites)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/dev/null", path)])
def test_a_report_that_cannot_be_one_is_refused_before_the_work(make, tmp_path):
    make(tmp_path / "j.xml")
    for force in (False, True):
        for validate in (validate_junit, *(() if make is not os.mkdir else (validate_csv,))):  # a grid may go to a pipe
            with pytest.raises(UsageError, match=r"no regular file|is a folder"):
                validate(tmp_path / "j.xml", force)
    for validate in (validate_junit, validate_csv):
        with pytest.raises(OutputError, match="could not be written"):
            validate(tmp_path / "nowhere" / "j.xml", False)
    assert [p.name for p in tmp_path.iterdir()] == ["j.xml"]


def test_junit_leaves_a_file_of_somebody_else_alone(tmp_path, capsys):
    (tmp_path / "j.xml").write_text("<mine/>")
    words = ["check", "m.gguf", "--quiet", "--junit", str(tmp_path / "j.xml")]
    assert main(words) == 2 and (tmp_path / "j.xml").read_text() == "<mine/>"
    assert "is no report of apr-tui" in capsys.readouterr().err


@pytest.mark.parametrize("name,words,said", [
    ("compare", ["--out", "x", "/m/a.gguf", "transformers:/m/b@compute=q8", "--json", "--prompt", "a/b c"],
     "apr-tui compare a.gguf transformers:b@compute=q8 --prompt 'a/b c'"),
    ("trace", ["--quiet", "--tokens", "1,2", "m.gguf", "--no-witness", "--generate"],
     "apr-tui trace m.gguf --tokens 1,2 --generate 8 --no-witness"),
    ("check", ["/b/saved/", "--model", "/m/a.gguf", "--junit", "j", "--threshold", "4"],
     "apr-tui check saved --threshold 4 --model a.gguf"),
    ("import", ["t.csv", "--out", "o", "--definition", "sample"], "apr-tui import t.csv --definition sample")])
def test_the_command_in_normal_form_has_no_folder_and_nothing_that_changes_no_number(name, words, said):
    assert normal_form(name, words) == said
    assert not re.search(r"--(out|json|quiet|junit)", said)


def audited():
    proof = Finding("zeros", Strength.PROOF, f"blk.3.ffn_down.weight: rows of zeros {EVIL}", "no model has them", 4.0,
                    "blk.3.ffn_down.weight", 3, 0)
    hint = Finding("level", Strength.HINT, "blk.1.attn_q.weight is 8 x its siblings", "beyond 6", 8.0)
    facts = {"architecture": "qwen2", "name": None, "bytes": 1 << 20, "types": {"F32": {"tensors": 2}}, "keys": {},
             "known": None, "tokenizer": {"model": None, "notes": []}, "template": None, "zero_token_rows": 0,
             "not_run": None, "unread": [], "notes": []}
    return Audit("m.gguf", facts, 2, (proof, hint))


def test_an_audits_folder_has_reports_and_is_shown_again_and_its_proofs_fail_in_ci(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("core.session.audit", lambda path, original: audited(), raising=False)
    words = ["audit", "m.gguf", "--out", str(tmp_path / "v"), "--junit", str(tmp_path / "j.xml"), "--json"]
    assert main(words) == 1
    told = json.loads(capsys.readouterr().out)
    page = Read(tmp_path / "v" / "report.html")
    body = [w for w in page.words if w.strip()]
    body = body[body.index("}", 1) + 1:] if "}" in body else body
    assert "PROOF" in " ".join(body[:3]) and "script" not in page.tags and "4.0" in page.words
    assert "apr-tui audit m.gguf" in (tmp_path / "v" / "report.md").read_text()
    assert rows(tmp_path / "v" / "findings.csv")[0]["tensor"] == told["findings"][0]["tensor"]
    assert main(["show", str(tmp_path / "v"), "--json"]) == 0 and json.loads(capsys.readouterr().out) == told
    suite, = ElementTree.parse(tmp_path / "j.xml").getroot()
    assert [suite.get(k) for k in ("tests", "failures", "skipped")] == ["3", "2", "1"]
    assert main(words) == 2, "what is there is not replaced"
