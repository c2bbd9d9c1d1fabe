"""What two files differ in is said in words before any forward, and stands first in the comparison."""

from __future__ import annotations

import numpy as np
import pytest

from apr_tui.cli.output import comparison_text
from core import session
from core.audit.file_pair import file_diff
from core.bundle.verdicts import comparison_document
from core.formats.open_model import open_model
from core.system.errors import Cancelled
from core.trace.events import CellMeasured, FilesCompared
from core.trace.request import Prompt, Source
from tests.support.small_models import IDS, write_model


def diff(tmp_path, **other):
    a, b = write_model(tmp_path / "a.gguf", "Q8_0"), write_model(tmp_path / "b.gguf", **{"quant": "Q8_0", **other})
    return file_diff(open_model(a), open_model(b))


def test_equal_files_and_one_file_are_said_to_be_so(tmp_path):
    assert diff(tmp_path) == ("A and B hold the same: 39 tensors, byte for byte, and every key that is told apart",)
    one = open_model(tmp_path / "a.gguf")
    assert file_diff(one, one) == ("A and B are one file",)


def test_a_key_and_a_row_that_differ_are_named(tmp_path):
    def change(x):
        x[9] *= 2
        return x

    assert diff(tmp_path, keys={"qwen2.rope.freq_base": 1e5}, changes={"blk.1.ffn_up.weight": change}) == (
        "qwen2.rope.freq_base is 10000 in A and 100000 in B", "other bytes in blk.1.ffn_up.weight (from row 9 on)",
        "38 of 39 tensors are equal, byte for byte")


def test_types_shapes_and_absent_tensors_are_told(tmp_path):
    assert diff(tmp_path, quants={"blk.0.ffn_up.weight": "Q4_0"}, changes={
        "blk.1.attn_q.bias": lambda x: None, "blk.2.ffn_down.weight": lambda x: x[:32]}) == (
        "only in A: blk.1.attn_q.bias", "blk.2.ffn_down.weight has shape [64, 128] in A and [32, 128] in B",
        "1 tensor is Q8_0 in A and Q4_0 in B", "36 of 39 tensors are equal, byte for byte")


def test_it_ends_when_it_is_cancelled(tmp_path):
    a, b = (open_model(write_model(tmp_path / name)) for name in ("a.gguf", "b.gguf"))
    with pytest.raises(Cancelled):
        file_diff(a, b, lambda: True)


def test_a_comparison_begins_with_it(tmp_path):
    a, b = (write_model(tmp_path / f"{n}.gguf", changes={"blk.2.attn_v.weight": f}) for n, f in (
        ("a", lambda x: x), ("b", np.negative)))
    events = []
    found = session.compare(Source(a), Source(b), Prompt(tokens=IDS), emit=events.append)
    first = next(i for i, e in enumerate(events) if isinstance(e, FilesCompared))
    assert not any(isinstance(e, CellMeasured) for e in events[:first])
    assert found.files == events[first].sentences == (
        "other bytes in blk.2.attn_v.weight (from row 0 on)", "38 of 39 tensors are equal, byte for byte")
    assert comparison_document(found)["files"] == list(found.files)
    assert comparison_text(found).splitlines()[1] == "files: other bytes in blk.2.attn_v.weight (from row 0 on)"
