"""Generated positions through the KV cache against one prefill; and the outlier channel that crushes a block."""

from __future__ import annotations

from pathlib import Path

import pytest

from core import session
from core.model.model import Cache
from core.proof.check_cache import decoded_cells
from core.system.errors import UsageError
from core.trace.request import Prompt, RunOptions, Source
from core.trace.run import open_side
from tests.support.small_models import IDS, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("decoded") / "m.gguf", "Q8_0", d_model=256, d_ff=512)


@pytest.mark.parametrize("compute", ["f32", "q8", "bf16"])
def test_the_cache_gives_what_one_prefill_gives(model: Path, compute: str):
    check = session.check(Source(model, compute=compute), Prompt(tokens=IDS), RunOptions(generate=4))
    assert check.verdict == "PASS" and check.decoded, check.reasons


def test_a_cache_that_forgets_its_first_key_is_found(model: Path, monkeypatch: pytest.MonkeyPatch):
    extend = Cache.extend

    def forget(self, layer, k, v):
        fed = len(k)
        k, v = extend(self, layer, k, v)
        if layer == 1 and len(k) > fed:
            k = k.clone()
            k[0] = 0.0
        return k, v

    monkeypatch.setattr(Cache, "extend", forget)
    cells = decoded_cells(open_side(session.open_model(model), "cpu"), [*IDS, 1, 2, 3], len(IDS), lambda: False)
    differing = [p for p, c in cells.items() if c.state == "differs"]
    assert differing[0] == (1, "attn_mix"), differing[:3]


def test_a_bug_made_from_a_whole_prompt_does_not_go_with_generation(model: Path):
    with pytest.raises(UsageError, match="--generate"):
        session.trace(Source(model, plant="no-mask@1.attn_mix"), Prompt(tokens=IDS), RunOptions(generate=2))


def test_an_outlier_channel_that_crushes_its_block_is_a_choice_and_is_named(tmp_path: Path):
    """The published case: one channel at 26 x rms; 8-bit activations lose its neighbours, and no side is a bug."""
    channel = 40

    def loud(array):
        array = array.copy()
        array[channel] = 26.0 * 4
        return array

    model = write_model(tmp_path / "m.gguf", "Q4_K", d_model=512, n_head=8, d_ff=512,
                        changes={"blk.2.ffn_norm.weight": loud})
    result = session.compare(Source(model, compute="q8"), Source(model), Prompt(tokens=IDS))
    assert result.verdict == "H3", result.reasons
    named = [r for r in result.reasons if "activation block crush" in r]
    assert named and f"channel {channel}" in named[0] and "2.ffn_norm" in named[0], result.reasons
