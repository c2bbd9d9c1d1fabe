"""Write a folder that shows a wrong stage by itself: its inputs, its weight rows, its value, and a test that fails.

The folder needs numpy, safetensors and pytest, and nothing of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from core.kernels.cpu.decoding import decode_rows
from core.model.arch import Arch, stage_weights
from core.model.forward import forward
from core.model.layers import Attention
from core.model.lockstep import ForwardRun, run_lockstep
from core.model.model import Tap
from core.model.ops import rope_angles
from core.model.stages import PREVIOUS, TRUNK, Place, Stage, place_text, stage_named
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
    if kind == "value":  # of a stage without a short formula: float64's, when this was written
        return CASE["want"]
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
    if is_short(side.model.arch, place):
        case, says = _case(side, place, seen)
    else:
        want = _truth(side, place, tokens, cancelled)
        case, says = {"found": seen[place[1]], "want": want}, {"operation": "value"}
    says |= {"place": place_text(place), "limit": 100 * error.limit, "eps": side.model.arch.eps,
             "head_dim": _head_width(side, place), "pairing": side.model.arch.rope.pairing, "tokens": list(tokens),
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
    run_lockstep([side.forward_run(tokens, tap)], cancelled, enough=lambda: bool(done))
    return seen


def _case(side: Side, place: Place, seen: dict[str, Tensor]) -> Case:
    """The tensors and the facts that the stage's formula needs."""
    stage, node = stage_named(place[1]), side.model.arch.node(*place)
    assert node is not None
    inputs = [seen[name] for name in node.inputs]
    case, says = CASES[node.operation](side, place, stage, inputs, seen[place[1]])
    return {"found": seen[place[1]], **case}, says


def is_short(arch: Arch, place: Place) -> bool:
    """Whether the stage's formula stands in the test: that of a usual decoder."""
    node, layer = arch.node(*place), None if place[0] is None else arch.layers[place[0]]
    if node is None or node.operation not in CASES:
        return False
    a, f = (None, None) if layer is None else (layer.attention, layer.ffn)
    joined = f is not None and f.gate == "joined" and place[1] in ("ffn_gate", "ffn_up")
    usual: dict[str, bool] = {
        "lookup": True, "norm": arch.norm == "rms", "linear": not joined and not (
            place[1] == "logits" and (arch.logit_scale != 1 or arch.logit_cap)),
        "activation": f is not None and f.act == "silu", "product": f is not None and f.act != "oai",
        "residual": len(node.inputs) == 2 and layer is not None and layer.residual == 1 and not layer.scaled,
    }
    if node.operation in usual:
        return usual[node.operation]
    if a is None or a.mla is not None or a.clamp or a.gate or not a.own_v or a.v_norm or arch.norm != "rms":
        return False
    if node.operation == "attention":
        return a.is_plain
    return a.rope is not None and "whole" not in (a.q_norm, a.k_norm) and not (
        a.norm_after_rope or a.l2 or a.temperature)


def _truth(side: Side, place: Place, tokens: Sequence[int], cancelled: IsCancelled) -> Tensor:
    """What float64 makes of the side's own inputs at the place."""
    source: dict[Place, Tensor] = {}
    found: list[Tensor] = []

    def keep(layer: int | None, stage: str, value: Tensor) -> Tensor:
        source[layer, stage] = value
        return value

    def exact(layer: int | None, stage: str, value: Tensor) -> Tensor:
        if (layer, stage) == place:
            found.append(value)
        return source.pop((layer, stage)).to(value)

    model = replace(side.model, dtype=torch.float64)
    run_lockstep([side.forward_run(tokens, chain(side.bug(), keep)),
                  ForwardRun(forward(model, tokens, exact), "f32", side.threads)],
          cancelled, enough=lambda: bool(found))
    return found[0]


def _weights_of(side: Side, place: Place) -> list[str]:
    return stage_weights(side.model.file, side.model.arch.layer(place[0]), place[1])


def _linear(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    """A product keeps the rows of its worst channels only."""
    names = [n for n in _weights_of(side, place) if n.endswith(".weight")]
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
    weight = side.model.vector(_weights_of(side, place)[0])
    assert weight is not None
    return {"input": inputs[0], "weight": weight}, {"operation": "norm"}


def _rope(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    a = attention_of(side, place)
    assert a.rope is not None
    factors = None if a.rope.factors is None else side.model.vector(a.rope.factors)
    cos, sin = rope_angles(a.rope, 0, len(found), factors)
    case = {"input": inputs[0][:, a.part(stage.name[0])], "cos": cos, "sin": sin}
    norm = side.model.vector(f"blk.{place[0]}.{stage.weights[0]}.weight")
    return case if norm is None else {**case, "norm": norm}, {"operation": "rope"}


def _attention(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    q, k, qkv = inputs
    return {"q": q, "k": k, "v": qkv[:, attention_of(side, place).part("v")]}, {"operation": "attend"}


def _head_width(side: Side, place: Place) -> int:
    layer = None if place[0] is None else side.model.arch.layers[place[0]].attention
    return side.model.arch.head_dim if layer is None else layer.width


def attention_of(side: Side, place: Place) -> Attention:
    """The attention of a place's layer."""
    found = side.model.arch.layers[place[0] or 0].attention
    assert found is not None
    return found


def _activation(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"input": inputs[0]}, {"operation": "silu"}


def _product(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"left": inputs[0], "right": inputs[1]}, {"operation": "product"}


def _residual(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"left": inputs[0], "right": inputs[1]}, {"operation": "sum"}


def _lookup(side: Side, place: Place, stage: Stage, inputs: list[Tensor], found: Tensor) -> Case:
    return {"left": found, "right": torch.zeros_like(found)}, {"operation": "sum"}


CASES: Mapping[str, Callable[[Side, Place, Stage, list[Tensor], Tensor], Case]] = {
    "lookup": _lookup, "norm": _norm, "linear": _linear, "rope": _rope, "attention": _attention,
    "residual": _residual, "activation": _activation, "product": _product,
}
