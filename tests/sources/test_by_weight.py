"""What an engine's nodes are, told by the tensors that they read: on every row of the families, and in the engines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from core import session
from core.formats.architectures import ARCHS
from core.formats.open_model import open_model
from core.model.arch import read_arch
from core.sources.engines.by_weight import dense_weights, join, sort_experts, stages_by_tensor
from core.trace.request import Prompt, Source
from tests.support.families import write_family
from tests.support.family_rows import case_of

SHARED = Path(__file__).parents[3] / "shared" / "data"
FILES = sorted((SHARED / "families").glob("*.gguf")) if SHARED.is_dir() else []
FOLDERS = sorted((SHARED / "originals").iterdir()) if SHARED.is_dir() else []
PROMPT = Prompt(tokens=(3, 17, 5, 11, 2, 7, 9, 1, 4, 22, 30, 8))
TOLD = ("linear", "norm", "experts")
slow = pytest.mark.slow


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


@pytest.mark.parametrize("row", ARCHS)
def test_every_product_and_norm_of_a_layer_is_told_by_a_tensor(row, tmp_path) -> None:
    file = open_model(write_family(tmp_path / "a.gguf", case_of(row)))
    arch = read_arch(file)
    by = stages_by_tensor(arch, frozenset(file.weights))
    for layer in arch.layers:
        for stage, node in layer.nodes.items():
            if node.operation in TOLD and arch.norm != "plain":
                assert (layer.index, stage) in by.tensors, stage
    shapes = {name.removesuffix(".weight"): weight.shape for name, weight in file.weights.items()}
    made = {name: np.zeros((2, shapes[name][-2] if len(shapes[name]) > 1 else shapes[name][0]), np.float32)
            for name in by.places if name in shapes and len(shapes[name]) < 3}
    joined = join(by, lambda place: arch.width(*place), made)
    linear = {(layer.index, stage) for layer in arch.layers for stage, node in layer.nodes.items()
              if node.operation == "linear" and node.width > 1}
    assert linear <= set(joined), sorted(linear - set(joined))


def test_a_product_of_two_stages_is_divided_and_one_of_three_tensors_joined(tmp_path) -> None:
    file = open_model(write_family(tmp_path / "a.gguf", case_of("glm4")))
    arch = read_arch(file)
    by = stages_by_tensor(arch, frozenset(file.weights))
    up = np.arange(2.0 * 96, dtype=np.float32).reshape(2, 96)
    q, k, v = (np.full((2, n), n, np.float32) for n in (64, 32, 32))
    found = join(by, lambda place: arch.width(*place), {
        "blk.0.ffn_up": up, "blk.0.attn_q": q, "blk.0.attn_k": k, "blk.0.attn_v": v})
    assert np.array_equal(found[0, "ffn_gate"], up[:, :48]) and np.array_equal(found[0, "ffn_up"], up[:, 48:])
    assert np.array_equal(found[0, "qkv"], np.concatenate((q, k, v), 1)) and set(by.inputs) >= {"blk.0.attn_q"}


def test_the_chosen_experts_are_put_in_the_order_of_their_ids() -> None:
    ids = np.array([[2, 0], [1, 3]])
    value = np.array([[[20.0], [0.0]], [[10.0], [30.0]]], np.float32)
    assert sort_experts(value, ids)[..., 0].tolist() == [[0.0, 20.0], [10.0, 30.0]]
    assert dense_weights(value[..., 0], ids, 4).tolist() == [[0.0, 0, 20, 0], [0, 10, 0, 30]]


@slow
@pytest.mark.skipif(not has("llama_cpp"), reason="llama.cpp is not installed")
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_llama_cpp_is_right_at_every_stage_of_a_reference_file(path) -> None:
    result = session.check(Source(path, scheme="llama.cpp", threads=1), PROMPT)
    assert result.verdict == "PASS", result.reasons
    n_layer = result.trace.facts.n_layer
    assert {(i, "output") for i in range(n_layer - 1)} <= set(result.errors) and len(result.errors) > 5 * n_layer


@slow
@pytest.mark.skipif(not has("transformers"), reason="transformers is not installed")
@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_transformers_is_right_at_every_stage_of_the_original_folder(folder) -> None:
    file = SHARED / "families" / f"{folder.name}.gguf"
    result = session.check(Source(folder, scheme="transformers", threads=1), PROMPT, model=file)
    assert result.verdict == "PASS", result.reasons
