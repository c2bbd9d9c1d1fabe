"""Keep a model's weights on its GPU, still quantised, and answer the forward's products and small operations there.

Where the memory does not hold them all, the others are brought again for each product. No arithmetic of its own: the
kernels are in kernels/gpu, and Triton is imported with the first Resident.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from core.kernels.cpu.build import OVERRIDE
from core.kernels.gpu.planes import LAYOUTS, Planes, to_planes
from core.model import ops
from core.quant.weight import Weight
from core.system.gpu_errors import first_line

if TYPE_CHECKING:
    from core.kernels.gpu.products import Split

SPARE_BYTES = 1 << 30  # of the device's memory, left to activations
COPIES = 3  # of a weight, while it is split
LEAST_CAPABILITY = (8, 0)  # bfloat16 matrix units
QUERIES = 512  # of a long prompt that attention takes at a time: its scores are kept whole
SHARED = 8  # splits kept: q, k and v share one, gate and up another, in each of the runs in lockstep


@functools.cache
def why_no_kernels(device: torch.device) -> str | None:
    """Say why the fused kernels cannot serve on a device; None where they can."""
    if os.environ.get(OVERRIDE) == "decode":
        return f"{OVERRIDE}=decode"
    if importlib.util.find_spec("triton") is None:
        return "the Python package triton is not installed"
    if device.type == "cpu":
        return "the device is a CPU"
    has = torch.cuda.get_device_capability(device)
    if has < LEAST_CAPABILITY:
        return f"compute capability {has[0]}.{has[1]}; {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} is needed"
    return _why_not_compiled(device)


def open_resident(device: torch.device) -> Resident | None:
    """Return a new store for one model on the device; None where the kernels cannot serve there."""
    return None if why_no_kernels(device) else Resident(device)


class Resident:
    """The weights of one model on its device; the memory goes with it."""

    def __init__(self, device: torch.device) -> None:
        from core.kernels.gpu import layer as triton_layer
        from core.kernels.gpu import products as triton_products

        self.device = device
        self.is_whole = True  # whether every weight asked for so far has stayed
        self.ops = ops.Ops(triton_layer.rms_norm, lambda cos, sin, _: (cos, sin), triton_layer.rotate, _attend)
        self._products, self._layer = triton_products, triton_layer
        self._planes: dict[str, Planes] = {}
        self._splits: list[Split] = []

    def serves(self, weight: Weight, x: Tensor) -> bool:
        """Say whether the kernels serve this product."""
        return weight.quant in LAYOUTS and len(weight.shape) == 2 and x.dtype in (torch.float32, torch.bfloat16)

    def multiply(self, weight: Weight, x: Tensor) -> Tensor:
        """Return x W^T [T, rows] in x's type; bfloat16 activations are for weights rounded to bfloat16 as well."""
        digits = self._products.is_one_token(weight.quant, x)
        return self._products.multiply_planes(self.planes(weight), self._split(x, digits)).to(x.dtype)

    def embed(self, weight: Weight, ids: Tensor) -> Tensor:
        """Decode the rows of these token ids [T] to [T, D] float32."""
        return self._layer.decode_planes(self.planes(weight), ids)

    def planes(self, weight: Weight) -> Planes:
        """Return the weight on the device, brought there where it is not."""
        kept = self._planes.get(weight.name)
        if kept is not None:
            return kept
        stays = self.device.type == "cpu" or _free_bytes(self.device) > SPARE_BYTES + COPIES * weight.data.nbytes
        brought = to_planes(weight, self.device)
        if stays:
            self._planes[weight.name] = brought
        self.is_whole &= stays
        return brought

    def _split(self, x: Tensor, digits: bool) -> Split:
        for known in self._splits:
            if known.x is x and (known.parts.dtype == torch.int8) == digits:
                return known
        made = self._products.split(x, digits)
        self._splits = [made, *self._splits[:SHARED - 1]]
        return made


def _attend(q_TNH: Tensor, k_SKH: Tensor, v_SKH: Tensor, position: Tensor | None = None) -> Tensor:
    """Attention of few tokens in one launch; of many by torch's plain products, which round as float32 does."""
    from core.kernels.gpu import layer as triton_layer

    n_token = len(q_TNH)
    if n_token <= triton_layer.FEW_TOKENS:
        return triton_layer.attend_few(q_TNH, k_SKH, v_SKH, position)
    n_past = len(k_SKH) - n_token if position is None else int(position)
    ends = [*range(QUERIES, n_token, QUERIES), n_token]
    with sdpa_kernel(SDPBackend.MATH):
        return torch.cat([ops.attend(q_TNH[i * QUERIES:end], k_SKH[:n_past + end], v_SKH[:n_past + end])
                          for i, end in enumerate(ends)])


def _free_bytes(device: torch.device) -> int:
    """What may still be allocated: what the driver has, and what torch has taken and does not use."""
    held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int(torch.cuda.mem_get_info(device)[0] + held)


def _why_not_compiled(device: torch.device) -> str | None:
    """Launch the smallest kernel: Triton wants a C compiler, Python's headers and a folder to write in."""
    from core.kernels.gpu import layer as triton_layer

    try:
        with torch.cuda.device(device):
            one = torch.ones(1, 16, device=device)
            triton_layer.rms_norm(one, one[0], 1e-6)
    except Exception as error:  # noqa: BLE001 (whatever it is, the reason is reported and another path serves)
        return f"Triton cannot compile here: {type(error).__name__} {first_line(error)}"
    return None
