"""Dumps of llama.cpp and transformers themselves, on a small model: clean ones name nothing, a fault is named."""

from __future__ import annotations

import pytest

from tests.readers_suite import FAULTS, FORMS, Bench, quiet
from tests.support.small_models import write_model

pytestmark = pytest.mark.slow
PLACES = {"importance matrix": ((1, "ffn_norm"), "scale"), "llama-eval-callback log": ((1, "ffn_out"), "offset")}


@pytest.fixture(scope="module")
def bench(tmp_path_factory) -> Bench:
    """A llama of two layers in three engines."""
    pytest.importorskip("llama_cpp")
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("real")
    model = write_model(folder / "m.gguf", arch="llama", n_layer=2, tokenizer="spm")
    with quiet():
        return Bench(model, folder / "dump")


@pytest.mark.parametrize("form", FORMS)
def test_a_dump_of_a_real_run_names_a_fault_at_its_place_and_nothing_where_there_is_none(bench, form):
    place, kind = PLACES.get(form, ((1, "ffn_gate"), "offset"))
    with quiet():
        assert bench.judge(form, bench.dump(form))[1] is None
        assert bench.judge(form, bench.dump(form, place, FAULTS[kind]))[1] == place
