"""The model that is trained: the decoder of model/forward.py as modules, on the same functions of model/ops.py.

Parameter names are GGUF's, so a checkpoint is the state as it stands. Attention treats all heads alike, so the batch is
folded into them and attend() of the trace serves here unchanged.
Shape letters: T tokens, B batch, D model, N query heads, K key-value heads, H head width, F feed-forward, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, embedding, linear

from core.formats.model_file import ModelFile
from core.model.arch import Arch, layer_weights
from core.model.ops import attend, rms_norm, rope_angles, rotate, silu
from core.quant.dequantize import decode_weight
from core.system.errors import UsageError

INIT_STD = 0.02
TENSOR_CORE_ROWS = 64  # a head of 50257 rows makes the tensor cores take a slower path; rows are filled up with zeros

Angles = tuple[Tensor, Tensor]


def no_tap(x_TBD: Tensor) -> Tensor:
    """Let the residual stream pass."""
    return x_TBD


class Values(nn.Module):
    """One tensor under a GGUF name: blk.3.attn_q.weight is the weight of a Values."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))


class Block(nn.Module):
    """One layer. Its parts are those that a model file names."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        for name, shape in layer_weights(arch).items():
            self.add_module(name.removesuffix(".weight"), Values(*shape))

    def part(self, name: str) -> Tensor:
        """The weight of a part."""
        return cast(Tensor, getattr(self, name).weight)

    def forward(self, x_TBD: Tensor, angles: Angles) -> Tensor:
        """Return the residual stream after the layer."""
        eps = self.arch.eps
        x_TBD = x_TBD + self.attention(rms_norm(x_TBD, self.part("attn_norm"), eps), angles)
        h_TBD = rms_norm(x_TBD, self.part("ffn_norm"), eps)
        h_TBF = silu(linear(h_TBD, self.part("ffn_gate"))) * linear(h_TBD, self.part("ffn_up"))
        return x_TBD + linear(h_TBF, self.part("ffn_down"))

    def attention(self, h_TBD: Tensor, angles: Angles) -> Tensor:
        """Return the projected mix of grouped-query attention; RoPE turns in at least float32."""
        n_token, n_batch, _ = h_TBD.shape
        parts = [linear(h_TBD, self.part(name)) for name in ("attn_q", "attn_k", "attn_v")]
        q_TNH, k_TKH, v_TKH = (part.reshape(n_token, -1, self.arch.head_dim) for part in parts)
        q_TNH, k_TKH = (self.turned(t, angles) for t in (q_TNH, k_TKH))
        mix_TBQ = attend(q_TNH, k_TKH, v_TKH).reshape(n_token, n_batch, -1)
        return linear(mix_TBQ, self.part("attn_output"))

    def turned(self, x_TNH: Tensor, angles: Angles) -> Tensor:
        """Apply RoPE."""
        wide = torch.promote_types(x_TNH.dtype, torch.float32)
        return rotate(x_TNH.to(wide), *angles, self.arch.rope.pairing).to(x_TNH.dtype)


class Decoder(nn.Module):
    """The whole model; its output is a loss, so that a wrapper sees one scalar. tap: sees the residual stream."""

    def __init__(self, arch: Arch) -> None:
        super().__init__()
        self.arch = arch
        self.tap: Callable[[Tensor], Tensor] = no_tap
        self.token_embd = Values(arch.n_vocab, arch.d_model)
        self.blk = nn.ModuleList(Block(arch) for _ in range(arch.n_layer))
        self.output_norm = Values(arch.d_model)
        if not arch.tied:
            self.output = Values(arch.n_vocab, arch.d_model)
        cos, sin = rope_angles(arch.rope, 0, arch.n_ctx, None)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, inputs_BT: Tensor, targets_BT: Tensor) -> Tensor:
        """Return the mean cross-entropy in nats."""
        return self.loss(self.hidden(inputs_BT), targets_BT.t())

    def logits(self, inputs_BT: Tensor) -> Tensor:
        """Return logits [T, B, V]."""
        return self.head(self.hidden(inputs_BT))

    def hidden(self, inputs_BT: Tensor) -> Tensor:
        """Return the residual stream [T, B, D] after the last layer."""
        x_TBD = self.tap(embedding(inputs_BT.t(), self.token_embd.weight))
        angles = self.angles(len(x_TBD))
        for block in self.blk:
            x_TBD = self.tap(block(x_TBD, angles))
        return x_TBD

    def loss(self, x_TBD: Tensor, targets_TB: Tensor) -> Tensor:
        """Mean cross-entropy of a residual stream, in at least float32."""
        logits = self.head(x_TBD)
        wide = torch.promote_types(logits.dtype, torch.float32)
        return cross_entropy(logits.flatten(0, 1).to(wide), targets_TB.flatten())

    def angles(self, n_token: int) -> Angles:
        """RoPE angles of the first n_token positions."""
        cos, sin = self.cos, self.sin
        assert isinstance(cos, Tensor) and isinstance(sin, Tensor)
        return cos[:n_token], sin[:n_token]

    def head(self, x_TBD: Tensor) -> Tensor:
        """Return the logits of a residual stream."""
        weight: Tensor = self.token_embd.weight if self.arch.tied else self.output.weight
        missing = -weight.shape[0] % TENSOR_CORE_ROWS if weight.is_cuda else 0
        if missing:
            weight = torch.nn.functional.pad(weight, (0, 0, 0, missing))
        logits = linear(rms_norm(x_TBD, self.output_norm.weight, self.arch.eps), weight)
        return logits[..., : self.arch.n_vocab] if missing else logits


def make_decoder(arch: Arch, seed: int) -> Decoder:
    """Build a model with seeded weights: normal(0, 0.02), the two residual products / sqrt(2 n_layer), norms 1.

    The draws are made on the CPU in the order of the names, so a seed gives one model on every device.
    """
    model = Decoder(arch)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sorted(model.named_parameters()):
            if weight.ndim == 1:
                weight.fill_(1.0)
                continue
            is_residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
            weight.normal_(0.0, INIT_STD / (2 * arch.n_layer) ** 0.5 if is_residual else INIT_STD, generator=generator)
    return model


def load_decoder(file: ModelFile, arch: Arch) -> Decoder:
    """Build a model from a file's weights, dequantised; UsageError where it has parts that are not trained here."""
    model = Decoder(arch)
    wanted = dict(model.named_parameters())
    more = [name for name in file.weights if name not in wanted]
    if more or arch.qk_norm or arch.rope.scaling != "none":
        found = ", ".join(more[:3]) or "QK-norm or RoPE scaling"
        raise UsageError(f"--init {file.path.name} is a {arch.name} with {found}; training knows llama's parts only: "
                         "no biases, no QK-norm, plain RoPE.")
    load_values(model, {name: decode_weight(file.weight(name)) for name in wanted})
    return model


def load_values(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values into the parameters of the same names."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(spread(values[name].to(weight.device), weight))


def spread(value: Tensor, like: Tensor) -> Tensor:
    """Spread a whole tensor over processes as another one is (FSDP2); itself where that one is whole."""
    mesh, placements = getattr(like, "device_mesh", None), getattr(like, "placements", None)
    if mesh is None:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, mesh, placements)


def layer_of(name: str) -> int | None:
    """The layer of a parameter; None outside the layers."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "blk" else None
