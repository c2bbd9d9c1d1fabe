"""Hints of one trained file, each by a planted fault; the trained file is made here, with a structure of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from core.audit.audit_file import Audit, audit_file
from core.formats.architectures import rope_row_order
from tests.support.small_models import write_model

N_LAYER, D, HEAD, F = 10, 128, 32, 96
Change = Callable[[np.ndarray], np.ndarray]


def structured(arch: str = "llama") -> dict[str, Change]:
    """Give each weight what training gives: residual channels with levels that drift from layer to layer, pairs of
    rows alike, columns of down like the rows of up, norms that bfloat16 holds."""
    random = np.random.default_rng(5)
    walk = np.cumsum(random.normal(0, 0.25, (N_LAYER, D)), 0)
    changes: dict[str, Change] = {"output_norm.weight": np.ones_like}
    for i in range(N_LAYER):
        channel = np.exp(walk[i] + random.normal(0, 0.05, D)).astype(np.float32)
        channel /= np.sqrt(np.mean(channel * channel))
        up = np.exp(random.normal(0, 0.4, F)).astype(np.float32)

        def pairs(n_head: int) -> np.ndarray:
            turn = 2 * np.pi * (np.arange(HEAD // 2) / (HEAD // 2) + random.random((n_head, 1)))
            return np.exp(np.repeat(np.cos(turn), 2, 1)).reshape(-1).astype(np.float32)

        q, k = pairs(4), pairs(2)
        norms = [(np.exp(walk[i] + random.normal(0, 0.05, D)).astype("<f4").view("<u4") & 0xFFFF0000).view("<f4")
                 for _ in range(2)]
        changes |= {
            f"blk.{i}.attn_q.weight": lambda x, q=q, c=channel: x * q[:, None] * c,
            f"blk.{i}.attn_k.weight": lambda x, k=k, c=channel: x * k[:, None] * c,
            f"blk.{i}.attn_v.weight": lambda x, c=channel: x * c,
            f"blk.{i}.attn_output.weight": lambda x, c=channel: x * c[:, None],
            f"blk.{i}.ffn_gate.weight": lambda x, c=channel: x * c,
            f"blk.{i}.ffn_up.weight": lambda x, u=up, c=channel: x * u[:, None] * c,
            f"blk.{i}.ffn_down.weight": lambda x, u=up, c=channel: x * u * c[:, None],
            f"blk.{i}.attn_norm.weight": lambda x, n=norms[0]: n, f"blk.{i}.ffn_norm.weight": lambda x, n=norms[1]: n}
    return changes


def written(path: Path, changes: dict[str, Change]) -> Audit:
    return audit_file(write_model(path / "m.gguf", arch="llama", n_layer=N_LAYER, d_model=D, n_head=4, n_kv_head=2,
                                  head_dim=HEAD, d_ff=F, changes=changes))


def audited(path: Path, more: dict[str, Change] | None = None) -> Audit:
    changes = structured()
    for name, change in (more or {}).items():
        before = changes[name]
        changes[name] = lambda x, before=before, change=change: change(before(x))
    return written(path, changes)


def test_a_sound_trained_file_has_no_finding(tmp_path):
    audit = audited(tmp_path)
    assert not audit.findings, [f.sentence for f in audit.findings]


def test_a_random_file_is_asked_for_no_hint_of_levels(tmp_path):
    path = write_model(tmp_path / "m.gguf", arch="llama", n_layer=N_LAYER, changes={
        "blk.3.ffn_up.weight": lambda x: x * 8, "blk.2.attn_norm.weight": lambda x: x + 9})
    assert not audit_file(path).findings


def one_block(x: np.ndarray) -> np.ndarray:
    x[3, 32:64] *= 64
    return x


def un_permuted(x: np.ndarray) -> np.ndarray:
    return x[rope_row_order(len(x), HEAD, "adjacent")]


def plus_one(x: np.ndarray) -> np.ndarray:
    return x + np.float32(1)


def one_row(x: np.ndarray) -> np.ndarray:
    x[7] = 0
    return x


@pytest.mark.parametrize(("name", "change", "kind"), [
    ("blk.4.ffn_up.weight", one_block, "block"),
    ("blk.4.attn_q.weight", un_permuted, "row_order"),
    ("blk.6.ffn_gate.weight", lambda x: x * 8, "level"),
    ("blk.5.ffn_norm.weight", plus_one, "norm_origin"),
    ("blk.5.attn_output.weight", lambda x: np.ascontiguousarray(x.T), "transposed"),
    ("blk.2.ffn_up.weight", one_row, "zero_row"),
])
def test_a_fault_in_a_trained_file_is_named(tmp_path, name, change, kind):
    audit = audited(tmp_path, {name: change})
    assert (kind, name) in [(f.kind, f.tensor) for f in audit.hints], [f.sentence for f in audit.findings]
    assert audit.exit_code == 0 and not audit.proofs


def exchanged(names: tuple[str, ...], layers: tuple[int, int] | None = None) -> dict[str, Change]:
    """Changes that put each named tensor where its partner was."""
    changes = structured()
    a, b = names if layers is None else ("", "")
    pairs = [(a, b)] if layers is None else [(f"blk.{layers[0]}.{n}", f"blk.{layers[1]}.{n}") for n in names]
    for first, second in pairs:
        changes[first], changes[second] = changes[second], changes[first]
    return changes


def test_gate_and_up_that_were_exchanged_are_named(tmp_path):
    audit = written(tmp_path, exchanged(("blk.4.ffn_gate.weight", "blk.4.ffn_up.weight")))
    assert [(f.kind, f.layer) for f in audit.findings] == [("gate_up", 4)]


def test_layers_that_were_exchanged_are_named(tmp_path):
    roles = tuple(n.split(".", 2)[2] for n in structured() if n.startswith("blk.0."))
    audit = written(tmp_path, exchanged(roles, (2, 7)))
    assert [f.sentence[:29] for f in audit.findings] == ["layers 2 and 7 look exchanged"]


def test_a_key_unlike_the_known_model_s_is_a_hint(tmp_path):
    path = write_model(tmp_path / "m.gguf", arch="llama", n_layer=5, d_model=64, n_head=8, n_kv_head=4, d_ff=172,
                       n_vocab=512, keys={"llama.rope.freq_base": 5e4, "llama.attention.layer_norm_rms_epsilon": 1e-5})
    audit = audit_file(path)
    assert [f.sentence for f in audit.hints] == [
        "llama.rope.freq_base is 50000; models of these shapes (stories260K) have 10000"]
    assert audit.facts["known"]["source"] == "karpathy/tinyllamas"
