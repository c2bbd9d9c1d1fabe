"""Try the model before step 0: does a token see the future, does position matter, is the CPU path the golden one.

Each returns None or the sentence that stops the run. Probes change no weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from core.formats.architectures import ARCHS
from core.model.arch import Arch
from core.model.layers import Rope
from core.train.config import ARCH, TrainOptions, learning_rate, settle
from core.train.model import Decoder, make_decoder
from core.train.step import Stepper, make_optimizer

PROBE_TOKENS = 32
LEAK_TOLERANCE = 1e-4      # of the largest logit: above the rounding of bf16 sums over one order, below a leak at init
ORDER_TOLERANCE = 1e-9     # of the change that position must make, in float64, where rounding is 1e-16

GOLDEN_STEPS = 8
GOLDEN_TOLERANCE = 2e-5    # nats: other thread counts and instruction sets sum in another order
GOLDEN_LOSSES = (
    5.555454254150391, 5.4774675369262695, 5.149397850036621, 4.948634147644043,
    4.75700569152832, 4.633545875549316, 4.59267520904541, 4.536696910858154,
)


@torch.no_grad()
def sees_the_future(stepper: Stepper, arch: Arch, seed: int) -> str | None:
    """Change the last tokens: the logits before them must not move. Run as the model is run, in its own float type."""
    tokens = _tokens(arch, seed).to(stepper.device)
    other = tokens.clone()
    cut = tokens.shape[1] // 2
    other[:, cut:] = (other[:, cut:] + 1) % arch.n_vocab
    with stepper.autocast():
        a, b = (_decoder(stepper.model).logits(t)[:cut].float() for t in (tokens, other))
    moved, size = float((a - b).abs().max()), float(a.abs().max())
    if moved <= LEAK_TOLERANCE * size:
        return None
    return (f"tokens see the future: changing tokens {cut} to {tokens.shape[1] - 1} moves logits before them by "
            f"{moved:.3g}, of at most {size:.3g}. The causal mask is missing")


@torch.no_grad()
def ignores_position(stepper: Stepper, arch: Arch, seed: int) -> str | None:
    """Permute the earlier tokens: the first layer's output at the last one must change, as only RoPE makes it."""
    decoder = _decoder(stepper.model)
    block = copy.deepcopy(decoder.blk[0]).cpu().double()
    tokens = _tokens(arch, seed)[:1]
    order = torch.cat((torch.randperm(PROBE_TOKENS - 1, generator=torch.Generator().manual_seed(seed)),
                       torch.tensor([PROBE_TOKENS - 1])))
    rows = decoder.token_embd.weight.detach().cpu().double()
    angles = tuple(t.cpu() for t in decoder.angles(PROBE_TOKENS))
    a, b = (block(rows[t].transpose(0, 1), angles)[-1] for t in (tokens, tokens[:, order]))
    change, size = float((a - b).abs().max()), float(a.abs().max())
    if change > ORDER_TOLERANCE * size:
        return None
    return (f"position does not matter: permuting the tokens before the last one changes layer 0's output there by "
            f"{change:.3g} of {size:.3g}. RoPE is missing")


def golden_losses() -> list[float]:
    """Losses of a fixed small run on one CPU thread, in float32 on seeded tokens that need no file."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _golden_run()
    finally:
        torch.set_num_threads(threads)


def golden_difference() -> float:
    """The largest |loss - golden| over the golden run."""
    return max(abs(a - b) for a, b in zip(golden_losses(), GOLDEN_LOSSES, strict=True))


def _golden_run() -> list[float]:
    plan = settle(TrainOptions(out=Path(), steps=GOLDEN_STEPS, batch=4, seq=32, seed=0, warm_up=2))
    arch = Arch(ARCH, 2, 64, 4, 2, 16, 128, 256, 64, 1e-5, Rope(1e4, 16, ARCHS[ARCH].pairing), qk_norm=False, tied=True)
    model = make_decoder(arch, plan.seed)
    stepper = Stepper(model, model, make_optimizer(model), torch.device("cpu"))
    rng = np.random.default_rng(7)
    steps = rng.integers(0, 40, (GOLDEN_STEPS, plan.batch, plan.seq + 1))  # 40 of 256 tokens: something to learn
    return [stepper.take_step(i, torch.from_numpy(rows), learning_rate(plan, i), statistics=False).loss
            for i, rows in enumerate(steps)]


def _decoder(model: nn.Module) -> Decoder:
    assert isinstance(model, Decoder)
    return model


def _tokens(arch: Arch, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(arch.n_vocab, (2, min(PROBE_TOKENS, arch.n_ctx)), generator=generator)


PROBES: tuple[tuple[str, str, Callable[[Stepper, Arch, int], str | None]], ...] = (
    ("PROBE-FUTURE", "no token sees the tokens after it", sees_the_future),
    ("PROBE-POSITION", "the order of the tokens matters", ignores_position),
)
