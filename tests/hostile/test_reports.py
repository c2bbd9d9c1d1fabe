"""Every text of every record hostile: what is written of it obeys none, on a terminal, as a page, in a spreadsheet."""

import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest

from core.bundle import costs
from core.bundle.junit import write_junit
from core.damage.kl import KlSummary, TokenKl
from core.damage.result import Damage, Measured, Raise, TensorDamage
from core.damage.run_kl import KlResult, WorstToken
from core.damage.worst import Cause
from core.session.evidence import export
from tests.fuzz.evidence_readers import _bisection, _check, _pair, _trace
from tests.support.spoil import is_shown, spoilt


def bill():
    tensors = (TensorDamage("blk.0.ffn_up.weight", 0, "Q4_0", 18, 0.5, 1.0),)
    recipe = (Raise("blk.0.ffn_up.weight", "Q4_0", "Q8_0", 64, 0.25),)
    return Damage("own block steps", "a text", 0.5, None, 0.0, tensors, recipe, Measured(1.0, 0.5, "a text"), None,
                  ("n",))


def kl():
    bucket = {"from": 0.0, "to": 1.0, "tokens": 2, "mean": 0.5, "top1": 1.0}
    summary = KlSummary(2, *[0.5] * 6, 1.0, 2.0, 2.0, (0.1, 0.9), 1e-9, (bucket,), (bucket,))
    worst = (WorstToken(0, 1, "a", 0.5, Cause((0, "ffn_up"), 0.9, ("blk.0.ffn_up.weight",))),)
    return KlResult("a.gguf", "b.gguf", "a text", summary, worst, (1, 2), TokenKl(*np.ones((5, 2))))


def write_bill(found, out):
    costs.write_damage(out, found, (f"m{spoilt('')}.gguf", f"o{spoilt('')}"), force=False, command=spoilt("c"),
                       repeat=spoilt("r"))


def write_kl(found, out):
    out.mkdir()
    costs.write_kl(out, found, command=spoilt("c"), repeat=spoilt("r"))


def write_evidence(found, out):
    export(found, out, command=spoilt("c"), repeat=spoilt("r"))


RECORDS = {
    "trace": (lambda: replace(_trace(), notes=("a note",), planted="gelu"), write_evidence),
    "comparison": (_pair, write_evidence), "check": (_check, write_evidence), "bisection": (_bisection, write_evidence),
    "bill": (bill, write_bill), "kl": (kl, write_kl)}


class Tags(HTMLParser):
    """The elements and attributes of a page."""

    def __init__(self, text):
        super().__init__()
        self.found = set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found |= {tag, *(f"{tag} {name}" for name, _ in attrs)}


@pytest.fixture(scope="module", params=RECORDS)
def written(request, tmp_path_factory):
    """Two folders of a record: as it is, and hostile."""
    home = tmp_path_factory.mktemp("reports")
    make, write = RECORDS[request.param]
    write(make(), home / "clean")
    write(spoilt(make()), home / "spoilt")
    return home / "clean", home / "spoilt"


def test_a_written_text_is_shown_and_not_obeyed(written):
    files = [path for path in written[1].rglob("*") if path.suffix in (".txt", ".md", ".html", ".csv", ".json")]
    assert {path.relative_to(written[1]) for path in files} >= {
        path.relative_to(written[0]) for path in written[0].rglob("*.*") if path.suffix != ".safetensors"}
    for path in files:
        text = path.read_bytes().decode()
        assert is_shown(text), (path.name, [line for line in text.split("\n") if not is_shown(line)][:3])


def test_a_page_has_the_elements_of_a_clean_one(written):
    for path in written[1].rglob("*.html"):
        clean = written[0] / path.relative_to(written[1])
        assert Tags(path.read_text()).found <= Tags(clean.read_text()).found, path


def test_markdown_has_no_more_marks_than_a_clean_one(written):
    for path in written[1].rglob("*.md"):
        lines = [line for line in path.read_text().split("\n") if not line.startswith("    ")]
        bare = re.sub(r"\\.", "", "\n".join(lines))
        assert not re.search(r"[`<>\[\]]|\*\*\*", bare), path
        clean = (written[0] / path.relative_to(written[1])).read_text()
        assert {*map(_columns, lines)} == {_columns(line) for line in clean.split("\n") if not line.startswith("    ")}


def _columns(line):
    return len(re.findall(r"(?<!\\)\|", line))


def test_a_table_s_cell_is_no_formula_and_every_row_has_its_columns(written):
    for path in written[1].rglob("*.csv"):
        rows = list(csv.reader(path.open(newline="", encoding="utf-8")))
        assert len({*map(len, rows)}) == 1
        assert not [c for row in rows for c in row if c[:1] in "=@+\t" and c], path


def test_a_document_is_whole_and_holds_the_text_itself(written):
    for path in written[1].rglob("*.json"):
        json.loads(path.read_text(encoding="ascii"))


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "'=1"])
def test_a_name_that_would_be_a_formula_is_none_in_a_table(name, tmp_path):
    found = replace(bill(), tensors=(replace(bill().tensors[0], name=name),))
    write_bill(found, tmp_path / "b")
    assert [row["name"] for row in csv.DictReader((tmp_path / "b" / "tensors.csv").open())] == [f"'{name}"]


@pytest.mark.parametrize("name", ["comparison", "check", "bisection"])
def test_junit_is_xml_of_shown_text(name, tmp_path):
    from xml.etree import ElementTree

    write_junit(tmp_path / "j.xml", [spoilt(RECORDS[name][0]())])
    assert is_shown((tmp_path / "j.xml").read_text()) and ElementTree.parse(tmp_path / "j.xml")
