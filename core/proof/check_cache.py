"""Check generation: tokens fed singly through the KV cache against the same tokens in one prefill, stage by stage."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from core.model.lockstep import run_lockstep
from core.model.model import Cache
from core.model.stages import Place
from core.proof.distance import difference, relative_l2
from core.proof.measure_pair import (
    classify,
    unit_of,
)
from core.system.cancel import IsCancelled
from core.trace.measures import MIN_REL_L2_FLOOR, Difference
from core.trace.run import SEED, Side
from core.trace.taps import add_noise, chain, record_values


def decoded_cells(side: Side, tokens: list[int], n_prompt: int, cancelled: IsCancelled) -> dict[Place, Difference]:
    """Measure every stage at positions from n_prompt on: through the cache (B) against one prefill (A), worst token.

    Another shape sums in another order, so that a floor is measured: the prefill with rounding-size noise at every
    stage.
    """
    prefill, noisy = dict[Place, Tensor](), dict[Place, Tensor]()
    noise = add_noise(unit_of(side), SEED)
    run_lockstep([side.forward_run(tokens, chain(side.bug(), record_values(prefill))),
           side.forward_run(tokens, chain(chain(side.bug(), noise), record_values(noisy)))], cancelled)
    cache, steps = Cache(), list[dict[Place, Tensor]]()
    bug = side.bug(whole=False)
    for feed in (tokens[:n_prompt], *([t] for t in tokens[n_prompt:])):
        step: dict[Place, Tensor] = {}
        run_lockstep([side.forward_run(feed, chain(bug, record_values(step)), cache)], cancelled)
        steps.append(step)
    cells = {}
    for place, whole in prefill.items():
        if place == (None, "logits"):
            whole_rows, rows, noise_rows = whole, steps[-1][place], noisy[place]
        else:
            whole_rows, noise_rows = whole[n_prompt:], noisy[place][n_prompt:]
            rows = torch.cat([step[place] for step in steps[1:]])
        floor = max(relative_l2(whole_rows, noise_rows)[0], MIN_REL_L2_FLOOR)
        cells[place] = classify(replace(difference(whole_rows, rows, len(tokens) - len(rows)), floor=floor))
    return cells
