"""Looking into a layer: its attention makes the mix that the run had, its lens at the last layer is the run's end."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from core import session
from core.system.errors import UsageError
from core.trace.look_inside import histogram
from core.trace.request import Prompt, RunOptions, Source
from tests.support.small_models import IDS, write_model

PROMPT = Prompt(tokens=IDS)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("view") / "small.gguf", arch="llama")


def test_the_shares_of_a_head_times_its_values_are_the_mix_of_the_run(model):
    view = session.layer_view(Source(model), PROMPT, 1)
    kept = session.trace(Source(model), PROMPT, RunOptions(keep_values=True)).values
    qkv, mix = kept[1, "qkv"].numpy(), kept[1, "attn_mix"].numpy()
    n_head, n_kv, width = 4, 2, 16
    v = qkv[:, -n_kv * width:].reshape(len(IDS), n_kv, width)
    assert view.attention.shape == (n_head, len(IDS), len(IDS))
    assert np.allclose(view.attention.sum(-1), 1, atol=1e-6) and not np.triu(view.attention[0], 1).any()
    for head in range(n_head):
        ours = view.attention[head] @ v[:, head // (n_head // n_kv)]
        assert np.allclose(ours, mix[:, head * width:(head + 1) * width], atol=1e-5), head


def test_the_lens_of_the_last_layer_is_what_the_model_says(model):
    trace = session.trace(Source(model), PROMPT)
    assert session.layer_view(Source(model), PROMPT, 2).lens == trace.top
    assert session.layer_view(Source(model), PROMPT, 0).lens != trace.top


def test_every_value_of_a_stage_is_counted_once(model):
    view = session.layer_view(Source(model), PROMPT, 0)
    assert {stage: int(h.counts.sum()) for stage, h in view.histograms.items()}["ffn_up"] == len(IDS) * 128


def test_a_massive_value_leaves_the_others_their_bins():
    value = torch.cat((torch.linspace(-1, 1, 1000), torch.tensor([3000.0, float("nan")])))
    found = histogram(value)
    assert found.not_finite == 1 and found.counts.sum() == 1001 and (found.counts > 0).sum() > 10
    assert (histogram(torch.zeros(4)).counts.sum(), histogram(torch.full((2,), torch.nan)).not_finite) == (4, 2)


def test_a_layer_that_is_not_there_and_a_bundle_are_refused(model, tmp_path):
    with pytest.raises(UsageError, match="layers 0 to 2"):
        session.layer_view(Source(model), PROMPT, 3)
    with pytest.raises(UsageError, match="not run here"):
        session.layer_view(Source(model, scheme="llama.cpp"), PROMPT, 0)
