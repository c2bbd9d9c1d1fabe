"""Write a folder that shows a wrong stage by itself: its inputs, its weight rows, its value, and a test that fails.

The folder needs numpy, safetensors and pytest, and nothing of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.model.arch import stage_weights
from core.model.lockstep import drive
from core.model.model import Tap
from core.model.ops import rope_angles
from core.model.stages import PREVIOUS, TRUNK, Operation, Place, Stage, place_text, stage_named
from core.quant.dequantize import decode_rows
from core.system.cancel import IsCancelled
from core.system.json_text import to_json
from core.trace.measures import LocalError
from core.trace.run import Side
from core.trace.taps import chain

Case = tuple[dict[str, Tensor], dict[str, object]]  # the tensors and the facts that a stage's formula needs

ROWS = 64  # of the weights of a product: those of the channels furthest off

TEST = '''"""{title}

Run: pytest {file}. It fails where the captured value is not what float64 makes of the captured inputs.
Shapes: T tokens, W width; case.safetensors holds the inputs, the weight rows and the value found ("found").
"""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

HERE = Path(__file__).parent
CASE = {{name: value.astype(np.float64) for name, value in load_file(HERE / "case.safetensors").items()}}
SAYS = json.loads((HERE / "case.json").read_text())


def rms_norm(x, weight):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + SAYS["eps"]) * weight


def rope(x):
    heads = x.reshape(len(x), -1, SAYS["head_dim"])
    if "norm" in CASE:
        heads = rms_norm(heads, CASE["norm"])
    cos, sin = CASE["cos"][:, None], CASE["sin"][:, None]
    half = cos.shape[-1]
    turned, rest = heads[..., : 2 * half], heads[..., 2 * half :]
    if SAYS["pairing"] == "halves":
        a, b = turned[..., :half], turned[..., half:]
        turned = np.concatenate((a * cos - b * sin, b * cos + a * sin), -1)
    else:
        a, b = turned[..., 0::2], turned[..., 1::2]
        turned = np.stack((a * cos - b * sin, b * cos + a * sin), -1).reshape(turned.shape)
    return np.concatenate((turned, rest), -1).reshape(len(x), -1)


def attend(q, k, v):
    T, H = len(q), SAYS["head_dim"]
    q, k, v = (t.reshape(T, -1, H).transpose(1, 0, 2) for t in (q, k, v))
    k, v = (np.repeat(t, len(q) // len(t), 0) for t in (k, v))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(H) + np.triu(np.full((T, T), -np.inf), 1)
    share = np.exp(scores - scores.max(-1, keepdims=True))
    return (share / share.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(T, -1)


def expected():
    kind = SAYS["operation"]
    if kind == "linear":
        return CASE["input"] @ CASE["weight"].T + CASE.get("bias", 0.0)
    if kind == "norm":
        return rms_norm(CASE["input"], CASE["weight"])
    if kind == "rope":
        return rope(CASE["input"])
    if kind == "attend":
        return attend(CASE["q"], CASE["k"], CASE["v"])
    if kind == "silu":
        return CASE["input"] / (1 + np.exp(-CASE["input"]))
    if kind == "product":
        return CASE["left"] * CASE["right"]
    return CASE["left"] + CASE["right"]


def test_the_stage_is_what_float64_makes_of_its_inputs():
    want, found = expected(), CASE["found"]
    error = ((found - want) ** 2).sum(-1) / (want**2).sum(-1)
    worst = int(np.nanargmax(np.where(np.isnan(error), np.inf, error)))
    place = SAYS["place"]
    assert error[worst] <= SAYS["limit"], (
        f"{{place}}: NMSE {{error[worst]:.3g}} at token {{worst}}, limit {{SAYS['limit']:.3g}}")
'''


def write_reproducer(
    folder: Path, side: Side, name: str, place: Place, error: LocalError, tokens: Sequence[int], cancelled: IsCancelled
) -> Path:
    """Capture the stage's inputs and value on that side; write case.safetensors, case.json and test_case.py."""
    from safetensors.numpy import save_file

    seen = _capture(side, place, tokens, cancelled)
    case, says = _case(side, place, seen)
    says |= {"place": place_text(place), "limit": 100 * error.limit, "eps": side.model.arch.eps,
             "head_dim": side.model.arch.head_dim, "pairing": side.model.arch.rope.pairing, "tokens": list(tokens),
             "model": side.model.file.path.name, "compute": side.compute}
    folder.mkdir(parents=True)
    arrays = {key: np.ascontiguousarray(value.cpu().numpy()) for key, value in case.items()}
    save_file(arrays, folder / "case.safetensors")
    (folder / "case.json").write_text(to_json(says, indent=1) + "\n")
    title = f"{place_text(place)} of side {name} is not what float64 makes of its own inputs."
    (folder / "test_case.py").write_text(TEST.format(title=title, file="test_case.py"))
    return folder


def _capture(side: Side, place: Place, tokens: Sequence[int], cancelled: IsCancelled) -> dict[str, Tensor]:
    """The values of the place's layer on that side, and "previous", the layer's input."""
    seen: dict[str, Tensor] = {}
    done: list[bool] = []

    def watch(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if not done and (layer == place[0] or stage == place[1]):
            seen[stage] = value
        if (layer, stage) == place:
            done.append(True)
        if stage in TRUNK and not done:
            seen[PREVIOUS] = value
        return value

    tap: Tap = chain(side.bug(), watch)
    drive([side.lane(tokens, tap)], cancelled, enough=lambda: bool(done))
    return seen


def _case(side: Side, place: Place, seen: dict[str, Tensor]) -> Case:
    """The tensors and the facts that the stage's formula needs."""
    stage = stage_named(place[1])
    inputs = [seen[name] for name in stage.inputs]
    case, says = CASES[stage.operation](side, place, stage, inputs, seen[place[1]])
    return {"found": seen[place[1]], **case}, says


def _linear(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    """A product keeps the rows of its worst channels only."""
    names = [n for n in stage_weights(side.model.file, *place) if n.endswith(".weight")]
    x, far, start = inputs[0][len(inputs[0]) - len(found) :], [], 0
    matrices = []
    for name in names:
        weight = side.model.file.weight(name)
        matrix = decode_rows(weight, 0, weight.shape[0], x.device)
        bias = side.model.vector(name.removesuffix("weight") + "bias")
        bias = torch.zeros(len(matrix), device=x.device) if bias is None else bias
        right = x.double() @ matrix.double().T + bias.double()
        far.append((found[:, start : start + len(matrix)].double() - right).abs().nan_to_num(nan=torch.inf).amax(0))
        matrices.append((matrix, bias))
        start += len(matrix)
    rows = torch.cat(far).argsort(descending=True, stable=True)[:ROWS].sort().values
    kept, bias_rows = (torch.cat([m[i] for m in matrices])[rows] for i in (0, 1))
    return ({"found": found[:, rows], "input": x, "weight": kept, "bias": bias_rows},
            {"operation": "linear", "channels": rows.tolist(), "weights": names})


def _norm(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    weight = side.model.vector(stage_weights(side.model.file, *place)[0])
    assert weight is not None
    return {"input": inputs[0], "weight": weight}, {"operation": "norm"}


def _rope(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    arch = side.model.arch
    cos, sin = rope_angles(arch.rope, 0, len(found), side.model.vector("rope_freqs.weight"))
    case = {"input": inputs[0][:, arch.qkv_part(stage.name[0])], "cos": cos, "sin": sin}
    norm = side.model.vector(f"blk.{place[0]}.{stage.weights[0]}.weight")
    return case if norm is None else {**case, "norm": norm}, {"operation": "rope"}


def _attention(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    q, k, qkv = inputs
    return {"q": q, "k": k, "v": qkv[:, side.model.arch.qkv_part("v")]}, {"operation": "attend"}


def _activation(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"input": inputs[0]}, {"operation": "silu"}


def _product(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"left": inputs[0], "right": inputs[1]}, {"operation": "product"}


def _residual(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"left": inputs[0], "right": inputs[1]}, {"operation": "sum"}


def _lookup(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"left": found, "right": torch.zeros_like(found)}, {"operation": "sum"}


CASES: Mapping[Operation, Callable[[Side, Place, Stage, list[Tensor], Tensor], Case]] = {
    "lookup": _lookup, "norm": _norm, "linear": _linear, "rope": _rope, "attention": _attention,
    "residual": _residual, "activation": _activation, "product": _product,
}
