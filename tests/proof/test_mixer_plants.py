"""A bug planted in a mixer is found at its place, and where it is a known one it is told which."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.faults.value_faults import VALUE_FAULTS, where_it_stands
from core.formats.open_model import open_model
from core.model.model import Model
from core.model.stages import place_order
from core.proof.check import check_stages
from core.system.cancel import never
from core.trace.run import Side, open_side
from tests.support.small_mixers import CASES, write_case

IDS = (3, 17, 5, 11, 2, 7, 9, 1)
STAGES = ("ssm_in", "ssm_mix", "mla_q_a", "mla_q", "mla_kv_a", "qkv", "mla_kv_a_norm", "q_rope", "k_rope", "attn_mix")
OWN = ("no-conv", "no-decay", "no-state", "key-heads", "rope-pairing", "rope-offset", "rope-base", "no-mask",
       "no-scale")  # made from the stage's inputs by the mixer's own formula


@pytest.fixture(params=CASES)
def side(request: pytest.FixtureRequest, tmp_path) -> Side:
    write_case(tmp_path / "one.gguf", CASES[request.param])
    return open_side(open_model(tmp_path / "one.gguf"), "cpu")


def plants(model: Model) -> Iterator[tuple[str, str]]:
    """Every kind at every stage of the mixer where it stands."""
    for kind, row in VALUE_FAULTS.items():
        if not row.choice and kind not in ("no-bias", "nibbles", "scale-min"):  # these weights have neither
            yield from ((kind, stage) for stage in STAGES if row.stands(model, 0, stage))


def test_every_bug_in_a_mixer_is_found_at_its_place(side) -> None:
    for kind, stage in plants(side.model):
        planted = open_side(side.model.file, "cpu", plant=f"{kind}@0.{stage}")
        bad = [place for place, e in check_stages(planted, list(IDS), cancelled=never).items() if e.is_bad]
        assert min(bad, key=place_order, default=None) == (0, stage), f"{kind}@{stage}"


def test_a_known_bug_of_a_mixer_is_told(side) -> None:
    for kind, stage in plants(side.model):
        if kind in OWN:
            planted = open_side(side.model.file, "cpu", plant=f"{kind}@0.{stage}")
            error = check_stages(planted, list(IDS), cancelled=never)[0, stage]
            assert error.guess == VALUE_FAULTS[kind].description, f"{kind}@{stage}"


def test_a_right_mixer_has_no_bad_stage(side) -> None:
    errors = check_stages(side, list(IDS), cancelled=never)
    assert set(errors) >= {(0, stage) for stage in side.model.arch.layers[0].nodes}
    assert not [place for place, error in errors.items() if error.is_bad]


def test_the_bugs_of_a_recurrence_stand_where_there_is_one(tmp_path) -> None:
    def said(case: str, kind: str) -> str:
        write_case(tmp_path / f"{case}.gguf", CASES[case])
        return where_it_stands(kind, open_side(open_model(tmp_path / f"{case}.gguf"), "cpu").model)

    assert said("mamba-2", "no-decay") == "in this model it can at 0.ssm_mix"
    assert said("short convolution", "no-decay") == "this model has no such stage"
    assert said("mamba-2", "key-heads") == "this model has no such stage"
    assert said("delta net", "key-heads") == "in this model it can at 0.ssm_mix"
