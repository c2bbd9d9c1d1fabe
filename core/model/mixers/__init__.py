"""The mixers of a layer, a file each: what carries something from token to token. MIXERS: by their names in layers.py.

A mixer is a generator function `mixer(model, layer, h_TD, cache, tap) -> Steps`:
- h_TD: what it reads (the layer's normed input, or the stream itself); it returns [T, D], its output projection's
  product. The caller (forward.block) taps that as attn_out (ssm_out where it stands beside attention), adds it.
- model: `yield from linear(model, layer.prefix + "ssm_in", h_TD)` multiplies by a stored matrix and adds its bias;
  `model.tensor(full name)` decodes a small tensor in its own shape, `model.vector` gives None where there is none;
  `model.norm(full name, x)` is the family's norm over the last axis. All in the lane's float type: exact in float64.
- layer: sizes stand in layer.attention (mla inside), layer.ssm. No key of the file is read, no name is guessed.
- tap(layer.index, stage, value [T, W]) returns the value to go on with: a mixer goes on with that one, always.
  Its stages and their inputs stand in nodes.py (ssm_in, ssm_mix; mla_q_a, mla_q, mla_kv_a, qkv, mla_kv_a_norm ...).
- cache: keys and values by cache.extend(layer.index, k, v) (all positions come back); a recurrent mixer keeps what it
  needs after the last token in cache.states[layer.index], and begins there where it is set: cache.n_past > 0.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from core.model.layers import ATTENTION, DELTA_NET, MAMBA, MAMBA2, MLA, SHORT_CONV, Layer
from core.model.mixers.attention import attention
from core.model.mixers.delta_net import delta_net
from core.model.mixers.mamba import mamba, mamba2
from core.model.mixers.mla import mla
from core.model.mixers.short_conv import short_conv
from core.model.model import Cache, Model, Steps, Tap

Mixer = Callable[[Model, Layer, Tensor, Cache, Tap], Steps]

MIXERS: dict[str, Mixer] = {
    ATTENTION: attention, MLA: mla, DELTA_NET: delta_net, MAMBA: mamba, MAMBA2: mamba2, SHORT_CONV: short_conv,
}
