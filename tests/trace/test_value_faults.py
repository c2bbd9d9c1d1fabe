"""A planted bug changes one value in its own way, and a plant that cannot be is refused with the table."""

from __future__ import annotations

import pytest
import torch

from core.faults.value_faults import EVERY, VALUE_FAULTS, parse_value_fault, value_fault_table, value_fault_tap
from core.formats.open_model import open_model
from core.model.stages import place_order
from core.system.cancel import never
from core.system.errors import UsageError
from core.trace.events import no_emit
from core.trace.run import open_side, run_traced
from tests.support.small_models import IDS, write_model

X = torch.arange(1.0, 9.0).reshape(2, 4)
CHANGED = {
    "shift": [[4, 1, 2, 3], [8, 5, 6, 7]], "negate": [[-1, -2, -3, -4], [-5, -6, -7, -8]],
    "swap": [[3, 4, 1, 2], [7, 8, 5, 6]], "scale": [[1.5, 3, 4.5, 6], [7.5, 9, 10.5, 12]],
    "stale": [[1, 2, 3, 4], [1, 2, 3, 4]], "zero-channel": [[0, 2, 3, 4], [0, 6, 7, 8]],
    "overflow": [[1, 2, 3, 4], [5, 6, 7, float("inf")]], "nan": [[1, 2, 3, 4], [float("nan"), 6, 7, 8]],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return open_side(open_model(write_model(tmp_path_factory.mktemp("plants") / "m.gguf")), "cpu").model


def test_the_plants_made_from_the_value_alone_are_these():
    assert set(CHANGED) == {kind for kind, row in VALUE_FAULTS.items() if row.value_only}


@pytest.mark.parametrize("kind", list(CHANGED))
def test_a_plant_does_what_its_row_says_and_leaves_the_value_it_was_given(kind, model):
    x = X.clone()
    out = value_fault_tap(f"{kind}@1.qkv", model)(1, "qkv", x)
    assert torch.equal(torch.nan_to_num(out, 99, 98), torch.nan_to_num(torch.tensor(CHANGED[kind]), 99, 98))
    assert torch.equal(x, X)


def test_a_plant_stands_at_its_place_only(model):
    tap = value_fault_tap("negate@1.ffn_swiglu", model)
    assert tap(0, "ffn_swigl", X) is X and tap(1, "ffn_up", X) is X and tap(None, "final_norm", X) is X
    assert torch.equal(tap(1, "ffn_swigl", X), -X)


@pytest.mark.parametrize(("text", "place"), [
    ("scale@0.attn_norm", (0, "attn_norm")), ("nan@2.ffn_swiglu", (2, "ffn_swigl")),
    ("swap@embedding", (None, "embedding")), ("shift@final_norm", (None, "final_norm")),
    ("negate@logits", (None, "logits"))])
def test_a_plant_is_read_as_kind_at_place(text, place):
    assert parse_value_fault(text, 3) == (text.partition("@")[0], place)


@pytest.mark.parametrize(("text", "says"), [
    ("frob@1.qkv", "it is 1.5 times too large"), ("q8@1.qkv", "no such kind"), ("gelu@1.qkv", "ffn_silu"),
    ("scale", "KIND@LAYER.STAGE"), ("scale@", "KIND@LAYER.STAGE"),
    ("scale@1.frob", "not a stage"), ("scale@qkv", "not a layer"), ("scale@3.qkv", "layers 0 to 2"),
    ("scale@-1.qkv", "not a layer"), ("scale@².qkv", "not a layer"), ("scale@" + "9" * 5000 + ".qkv", "not a layer"),
    ("scale@0.logits", "belongs to the whole model"), ("scale@1.2.qkv", "not a layer"), ("", "KIND@LAYER.STAGE")])
def test_a_plant_that_cannot_be_is_refused(text, says):
    with pytest.raises(UsageError) as caught:
        parse_value_fault(text, 3)
    assert says in str(caught.value)


def test_the_table_has_a_line_for_each_kind_that_can_be_planted():
    kinds = [kind for kind, row in VALUE_FAULTS.items() if not row.choice]
    assert [line.split()[0] for line in value_fault_table().splitlines()] == kinds
    assert all(set(row.stages) <= set(EVERY) for row in VALUE_FAULTS.values())


def test_a_plant_moves_its_own_place_and_nothing_before_it(model):
    clean, wrong = {}, {}
    for plant, into in ((None, clean), ("scale@1.ffn_up", wrong)):
        run_traced(open_side(model.file, "cpu", plant=plant), IDS, witness=False, layers=None, keep=into, emit=no_emit,
                   cancelled=never)
    moved = [p for p in sorted(clean, key=place_order) if not torch.equal(clean[p], wrong[p])]
    assert moved[0] == (1, "ffn_up") and (1, "ffn_silu") not in moved and (2, "output") in moved
    assert torch.equal(wrong[1, "ffn_up"], clean[1, "ffn_up"] * 1.5), "a record is what the forward goes on with"
