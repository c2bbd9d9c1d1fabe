"""Watch the residual stream of a step between the layers, and its gradient: how far from overflow, how noisy, where a
NaN began. Nothing is judged here (checks/windows), and watching changes no value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

EPS = 1e-6  # beside the mean square of a residual stream
Figures = Callable[[Tensor], Tensor]  # added up, or the largest taken, over processes


@dataclass(frozen=True, slots=True)
class Peak:
    """The largest |value| at a place; of a parameter's gradient its L2 norm, which is no smaller and costs nothing.

    birth: what has computed it, so where it went wrong if it did.
    """

    place: str
    birth: str
    value: float


@dataclass(slots=True)
class ResidualRecorder:
    """A tap for Decoder.tap. It keeps on the device, of one forward and backward, by layer (0: the embedding's output):

    peaks, and the gradient that each sequence alone would give a gain per channel on the normed stream, [B, D].
    """

    forward: list[Tensor] = field(default_factory=list)
    backward: dict[int, Tensor] = field(default_factory=dict)
    gains: dict[int, Tensor] = field(default_factory=dict)

    def tap(self, x_TBD: Tensor) -> Tensor:
        """Note the stream now, and its gradient once it comes."""
        at, seen_TBD = len(self.forward), x_TBD.detach()
        self.forward.append(_peak(seen_TBD))

        def note(grad_TBD: Tensor) -> None:
            self.backward[at] = _peak(grad_TBD)
            scale_TB1 = torch.rsqrt(seen_TBD.square().mean(-1, keepdim=True) + EPS)
            self.gains[at] = (grad_TBD * seen_TBD * scale_TB1).sum(0).float() * grad_TBD.shape[1]

        if x_TBD.requires_grad:
            x_TBD.register_hook(note)  # type: ignore[no-untyped-call]
        return x_TBD

    def peaks(self, norms: Mapping[str, float], largest: Figures | None = None) -> list[Peak]:
        """Read all peaks, in the order in which a step computes them; NaN reads as inf. norms: of each gradient."""
        n, back = len(self.forward), sorted(self.backward, reverse=True)
        places = [*((f"forward, after {_layer(i)}", f"forward pass of {_layer(i)}") for i in range(n)),
                  *((f"backward, after {_layer(i)}", f"backward pass of {_layer(i + 1)}" if i + 1 < n else
                     "head or the loss") for i in back),
                  *((f"gradient of {name}", f"gradient of {name}") for name in norms)]
        figures = torch.stack([f.float() for f in (*self.forward, *(self.backward[i] for i in back))])
        figures = torch.nan_to_num(figures, nan=math.inf, posinf=math.inf)
        read = (largest(figures) if largest is not None else figures).tolist()
        read += [math.inf if math.isnan(norm) else norm for norm in norms.values()]
        return [Peak(*place, value) for place, value in zip(places, read, strict=True)]

    def noise(self, sum_up: Figures | None = None) -> tuple[float, float] | None:
        """Estimate tr(Sigma) and |G|^2 of one sequence's gradient of the gains; None below two sequences.

        With v_b of B sequences: |G|^2 = (B |mean v|^2 - mean |v|^2) / (B - 1), tr(Sigma) = mean |v|^2 - |G|^2.
        |G|^2 has no bias, so it may be negative. Their ratio is the noise scale in sequences.
        Source: McCandlish et al. 2018, appendix A.1; gains for the whole: Gray et al. 2024 (norms' gradients).
        """
        if not self.gains:
            return None
        gains_LBD = torch.stack([self.gains[i] for i in sorted(self.gains)]).double()  # squares of 1e30 too
        sums = torch.cat([gains_LBD.sum(1).flatten(), gains_LBD.square().sum().view(1),
                          gains_LBD.new_full((1,), gains_LBD.shape[1])])
        sums = sums if sum_up is None else sum_up(sums)
        total, power, n = torch.stack([sums[:-2].square().sum(), sums[-2], sums[-1]]).tolist()
        if n < 2:
            return None
        signal = (total / n - power / n) / (n - 1)
        return power / n - signal, signal


def headroom(peaks: list[Peak], dtype: torch.dtype) -> tuple[float, str]:
    """Return the bits that the largest peak may grow before a dtype overflows, log2(max / peak), and its place."""
    top = max(peaks, key=lambda peak: peak.value)
    if not math.isfinite(top.value):
        return 0.0, top.place
    return math.log2(torch.finfo(dtype).max) - math.log2(max(top.value, torch.finfo(dtype).tiny)), top.place


def first_nonfinite(peaks: list[Peak]) -> str:
    """Say in words where the first value that is not finite stands; the order is that of the computation."""
    born = next((peak.birth for peak in peaks if not math.isfinite(peak.value)), None)
    return "not seen again when the batch is run once more" if born is None else f"born in the {born}"


def _layer(index: int) -> str:
    return "the embedding" if index == 0 else f"layer {index - 1}"


def _peak(x: Tensor) -> Tensor:
    return x.abs().amax()  # NaN stays NaN
