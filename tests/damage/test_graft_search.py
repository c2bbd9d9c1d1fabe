"""Exact grafts find the few tensors that moves of the logits do not."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from core.damage.exact import with_weights
from core.damage.few_tensors import Shifts
from core.damage.graft_search import Grafts, search
from core.damage.kl import last_kl
from core.damage.logits import hidden_states, logits, untapped
from core.formats.open_model import open_model
from core.system.cancel import never
from core.trace.run import open_side
from tests.support.small_models import write_model

LOG_A, LOG_B = np.log([0.2, 0.3, 0.4, 0.1]), np.log([0.5, 0.3, 0.1, 0.1])
AWAY = LOG_A - LOG_B


@dataclass
class Told:
    """Grafts whose truth is told: what each tensor really adds."""

    truth: dict
    tokens: tuple = (1,)

    def with_one_more(self, names, more):
        return {name: torch.tensor(LOG_B + sum(self.truth[n] for n in (*names, name)))[None] for name in more}

    def recovered(self, y_1V):
        return 1 - last_kl(torch.tensor(LOG_A)[None], y_1V) / last_kl(*(torch.tensor(y)[None] for y in (LOG_A, LOG_B)))


def test_what_grafts_say_is_believed_where_moves_mislead():
    side = np.array([0.4, 0.0, 0.0, -0.4])
    loud = [f"loud {i}" for i in range(12)]
    truth = {"left": AWAY / 2 + side, "right": AWAY / 2 - side, **dict.fromkeys(loud, -AWAY)}
    moves = {"left": AWAY / 9, "right": AWAY / 9, **dict.fromkeys(loud, AWAY / 2)}
    names, back = search(Shifts(LOG_A, LOG_B, moves, (0, 1, 2)), Told(truth), 2, 0.999)
    assert set(names) == {"left", "right"} and back > 0.99


def test_a_first_choice_is_exchanged():
    side = np.array([1.5, 0.0, -1.5, 0.0])
    truth = {"most": 0.7 * AWAY + np.array([0.0, 0.4, 0.0, 0.0]), "left": AWAY / 2 + side, "right": AWAY / 2 - side}
    names, back = search(Shifts(LOG_A, LOG_B, truth, (0, 1, 2)), Told(truth), 2, 0.999)
    assert set(names) == {"left", "right"} and back > 0.999


def test_a_graft_beside_others_is_the_graft_by_itself(tmp_path):
    a, b = (open_side(open_model(write_model(tmp_path / f"{t}.gguf", t)), "cpu", threads=1) for t in ("F32", "Q4_0"))
    tokens, names = [1, 5, 9, 2], ("blk.1.attn_v.weight",)
    more = ["token_embd.weight", "blk.0.ffn_up.weight", "blk.0.attn_q.weight", "blk.2.ffn_down.weight"]
    found = Grafts(a, b, tokens, torch.zeros(1), 1.0, never).with_one_more(names, more)
    for name in more:
        side = with_weights(b, {n: a.model.file.weight(n) for n in (*names, name)})
        y_1V = logits(side, hidden_states([side], tokens, untapped(1), never)[0][-1:], never)
        assert torch.allclose(found[name], y_1V, atol=1e-5, rtol=0), name
