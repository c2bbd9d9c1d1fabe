"""The table of stages and the table of architectures: what their rows claim must fit one another and the forward."""

from __future__ import annotations

from typing import get_args

from core.formats.apr_keys import apr_tensor
from core.formats.architectures import APR_NAMES, ARCHS, HF_FAMILIES, rope_row_order
from core.model.arch import Arch, layer_weights
from core.model.layers import Rope
from core.model.stages import FACTORS, GRID_STAGES, PREVIOUS, PRODUCT, STAGES, SUB_FFN, USUAL, Operation
from core.proof.reproducer import CASES
from core.sources.engines.by_weight import usual_stages
from core.sources.engines.hf_transformers import tensor_names
from core.sources.engines.llama_cpp import BY_NODE
from core.sources.imports.aprt import STAGE_FILES
from core.text.pre_tokenizers import PRE_NAMED

ARCH = Arch("qwen3", 2, 64, 4, 2, 16, 128, 99, 64, 1e-5, Rope(1e4, 16, "halves"), qk_norm=True, tied=False)


def test_a_stage_reads_only_stages_that_are_computed_before_it():
    done = {PREVIOUS}
    for stage in STAGES:
        assert set(stage.inputs) <= done, stage.name
        done.add(stage.name)


def test_every_tensor_of_a_layer_is_claimed_by_exactly_one_stage():
    layer = [stage for stage in STAGES if not stage.whole]
    assert sorted(f"{name}.weight" for s in layer for name in s.weights) == sorted(layer_weights(ARCH))


def test_a_linear_stage_is_as_wide_as_its_weights_have_rows_and_reads_as_many_columns():
    shapes = layer_weights(ARCH)
    widths = {s.name: ARCH.widths[s.width] for s in STAGES if s.width in ARCH.widths}
    for stage in (s for s in STAGES if s.operation == "linear" and s.weights and not s.whole):
        found = [shapes[f"{name}.weight"] for name in stage.weights]
        assert sum(rows for rows, _ in found) == widths[stage.name], stage.name
        assert {cols for _, cols in found} == {widths[stage.inputs[0]]}, stage.name


def test_the_parts_of_qkv_cover_it_once_and_are_as_wide_as_their_stages():
    q, k, v = (ARCH.qkv_part(part) for part in "qkv")
    assert (q.start, k.start, v.start, v.stop) == (0, q.stop, k.stop, ARCH.widths["Q"])
    assert (q.stop - q.start, k.stop - k.start) == (ARCH.widths["H"], ARCH.widths["K"])


def test_the_modules_of_transformers_are_those_of_the_tensors():
    for stage in STAGES:
        if stage.special or stage.whole:
            continue
        for name in stage.weights:
            module = apr_tensor(f"blk.0.{name}.weight").removesuffix(".weight")
            assert tensor_names("qwen3", 1)(module) == f"blk.0.{name}"


def test_no_foreign_name_stands_for_two_stages():
    assert len(BY_NODE) == sum(len(s.llama_cpp) for s in STAGES)
    assert len(STAGE_FILES) == sum(len(s.aprt or (s.name,)) for s in STAGES)


def test_every_column_of_the_grid_but_the_activation_is_told_by_a_tensor_or_a_node():
    by = usual_stages(1)
    told = {stage for _, stage in by.tensors} | {stage for _, stage in by.inputs.values()} | set(BY_NODE.values())
    assert told >= set(GRID_STAGES)


def test_the_product_and_the_inside_of_the_feed_forward_are_what_statistics_and_contracts_mean():
    assert FACTORS == ("ffn_silu", "ffn_up") and [s.operation for s in STAGES if s.name == PRODUCT] == ["product"]
    assert SUB_FFN == ("ffn_gate", "ffn_up", "ffn_silu", "ffn_swigl")


def test_every_operation_of_a_usual_decoder_can_be_reproduced_by_its_formula():
    usual = {s.operation for s in USUAL}
    assert set(CASES) == usual and {s.operation for s in STAGES} == set(get_args(Operation))


def test_an_architectures_row_names_a_known_pre_tokenizer_and_shares_no_name():
    assert all(family.pre is None or family.pre in PRE_NAMED for family in ARCHS.values())
    assert len(APR_NAMES) == sum(len(family.apr) for family in ARCHS.values()) and not set(APR_NAMES) & set(ARCHS)
    assert len(HF_FAMILIES) == sum(len(family.hf) for family in ARCHS.values())


def test_the_order_of_rope_rows_interleaves_the_halves_of_each_head_and_back():
    assert rope_row_order(8, 4, "halves") == [0, 2, 1, 3, 4, 6, 5, 7]
    assert rope_row_order(6, 6, "halves") == [0, 3, 1, 4, 2, 5]
    assert rope_row_order(6, 6, "adjacent") == [0, 2, 4, 1, 3, 5]
    there, back = (rope_row_order(24, 6, pairing) for pairing in ("halves", "adjacent"))
    assert [there[i] for i in back] == list(range(24))
