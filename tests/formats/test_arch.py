"""Hyper-parameters that a file may claim: what cannot be is named, quickly, and never an internal error."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import pytest

from core import session
from core.formats.model_file import LazyArray
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.model.convert import convert
from core.system.errors import FileError
from core.trace.request import Prompt, RunOptions, Source
from core.train.data.vocabulary import file_vocabulary
from tests.support.small_models import write_model

YARN = {"qwen2.rope.scaling.type": "yarn"}


def array(*items):
    return LazyArray("STRING", len(items), lambda: list(items))


@pytest.fixture
def model(tmp_path):
    return open_model(write_model(tmp_path / "m.gguf", tokenizer="bpe"))


@pytest.mark.parametrize("keys, says", [
    ({"general.architecture": array("qwen2")}, "holds architecture"), ({"general.architecture": 7}, "architecture '7'"),
    ({"apr.rope_type": array("x")}, "rope_type"), ({"apr.rope_type": 1}, "rope_type 1"),
    ({"qwen2.rope.freq_base": math.nan}, "freq_base is nan"),
    ({"qwen2.rope.scaling.factor": math.inf}, "factor is inf"),
    (YARN | {"qwen2.rope.scaling.original_context_length": 0}, "a whole number from 1"),
    (YARN | {"qwen2.rope.scaling.original_context_length": math.inf}, "a whole number from 1"),
    (YARN | {"qwen2.rope.scaling.yarn_beta_fast": 0.0}, "cannot turn heads"),
    (YARN | {"qwen2.rope.freq_base": 1.0}, "base 1.0"),
])
def test_hyper_parameters_that_cannot_be_are_refused(model, keys, says):
    with pytest.raises(FileError, match=says):
        read_arch(replace(model, keys={**model.keys, **keys}))


def test_a_file_that_claims_a_billion_layers_is_refused_at_once(model):
    began = time.monotonic()
    with pytest.raises(FileError, match=r"has no tensor blk\.3\."):
        read_arch(replace(model, keys={**model.keys, "qwen2.block_count": (1 << 31) - 1}))
    assert time.monotonic() - began < 2


def test_a_planted_mark_that_is_no_text_is_shown_as_it_is(tmp_path):
    path = write_model(tmp_path / "m.gguf", keys={"apr_tui.planted": 7})
    assert session.trace(Source(path), Prompt(tokens=(1, 2)), RunOptions(witness=False)).planted == "7"


@pytest.mark.parametrize("keys", [
    {"tokenizer.ggml.pre": array("qwen2")}, {"tokenizer.ggml.eos_token_id": 1 << 30},
    {"tokenizer.ggml.tokens": LazyArray("INT32", 1, lambda: [1])},
])
def test_a_vocabulary_of_another_form_is_not_trained_on(model, keys):
    from core.system.errors import UsageError

    with pytest.raises(UsageError, match="no byte-level BPE"):
        file_vocabulary(replace(model, keys={**model.keys, **keys}))


def test_types_of_tokens_that_are_no_list_make_no_token_special(model):
    keys = {**model.keys, "tokenizer.ggml.token_type": 3}
    assert file_vocabulary(replace(model, keys=keys)).specials == ()


def test_an_architecture_that_is_no_text_is_written_as_text(model, tmp_path):
    from core.formats.apr_writer import write_apr

    write_apr(tmp_path / "m.apr", replace(model, keys={**model.keys, "general.architecture": math.nan}))
    with pytest.raises(FileError, match="architecture 'nan'"):
        read_arch(open_model(tmp_path / "m.apr"))


@pytest.mark.parametrize("alignment", [0, 3, 1 << 31])
def test_an_alignment_that_no_file_can_have_is_not_written(tmp_path, alignment):
    from core.formats.apr_writer import write_apr

    model = open_model(write_model(tmp_path / "m.gguf"))
    write_apr(tmp_path / "m.apr", replace(model, keys={**model.keys, "general.alignment": alignment}))
    with pytest.raises(FileError, match=f"general.alignment is {alignment}"):
        convert(tmp_path / "m.apr", tmp_path / "again.gguf")
    assert not (tmp_path / "again.gguf").exists()
