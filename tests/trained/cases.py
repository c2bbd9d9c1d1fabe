"""The faults of the trained-weights suite: each a seeded edit of bytes, its cause, and where it must be named first.

A kind is a function from the model to its cases; layers, tensors and rows are drawn by a seed of the kind's name, so
that a case is the same whatever else runs. No verdicts here: tests.trained_suite judges.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random

import numpy as np
from gguf import GGMLQuantizationType as T

from tests.trained import surgery as cut
from tests.trained.surgery import Edit, ModelCopy

Place = tuple[int | None, str]
PROMPT = (1, 403, 407, 261, 378, 5345)

# a layer's matrices and norms -> the stage that reads them, in order of computation
STAGE_OF = {
    "attn_norm": "attn_norm", "attn_q": "qkv", "attn_k": "qkv", "attn_v": "qkv", "attn_q_norm": "q_rope",
    "attn_k_norm": "k_rope", "attn_output": "attn_out", "post_attention_norm": "attn_post_norm",
    "ffn_norm": "ffn_norm", "ffn_gate": "ffn_gate", "ffn_up": "ffn_up", "ffn_down": "ffn_out",
    "post_ffw_norm": "ffn_post_norm",
}
WHOLE = {"token_embd.weight": "embedding", "output_norm.weight": "final_norm", "output.weight": "logits"}
ORDER = ("embedding", *dict.fromkeys(STAGE_OF.values()), "final_norm", "logits")
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
NORMS = ("attn_norm", "ffn_norm")


@dataclass(frozen=True, slots=True)
class Case:
    """One comparison (or check) and what is right for it.

    names: what a reason must name, any of them. both: an edit of A and B before B's own. reached: whether the prompt
    reaches the fault. refused: a file that may be refused, naming the cause. a, b: settings of a side beyond the run's.
    apr: B is the file converted to .apr in that type. alone: B is checked by itself; without a place its names are
    no proof of a fault.
    """

    group: str
    kind: str
    label: str
    edit: Edit | None = None
    place: Place | None = None
    names: tuple[str, ...] = ()
    both: Edit | None = None
    reached: bool = True
    refused: bool = False
    prompt: tuple[int, ...] = PROMPT
    a: Mapping[str, object] = field(default_factory=dict)
    b: Mapping[str, object] = field(default_factory=dict)
    apr: str | None = None
    alone: bool = False


Kind = Callable[[ModelCopy, Random], Iterator[Case]]


def tensor_name(layer: int, role: str) -> str:
    """The weight of a role in a layer."""
    return f"blk.{layer}.{role}.weight"


def place_of(name: str) -> Place:
    """The stage that reads a tensor first."""
    if name in WHOLE:
        return None, WHOLE[name]
    _, layer, role, _ = name.split(".")
    return int(layer), STAGE_OF[role]


def first_place(names: Sequence[str]) -> Place:
    """The first place, in order of computation, that reads any of the tensors."""
    def when(place: Place) -> tuple[int, int]:
        layer, stage = place
        return (-1 if stage == "embedding" else 1 << 30) if layer is None else layer, ORDER.index(stage)

    return min((place_of(n) for n in names), key=when)


def fault(kind: str, name: str, edit: Edit, note: str = "", names: Sequence[str] = (), **more: object) -> Case:
    """A fault in one tensor, or in several (names), named at the first stage that reads it."""
    told = tuple(names) or (name,)
    return Case("fault", kind, f"{name}{' ' if note else ''}{note}", edit, first_place(told), told, **more)  # type: ignore[arg-type]


def targets(model: ModelCopy, rng: Random, roles: Sequence[str], n: int, kinds: Sequence[T] = ()) -> list[str]:
    """Draw n tensors of the roles: layers at random, each role in turn; of those types only, where some are given."""
    drawn: list[str] = []
    for layers in (rng.sample(range(model.n_layer), model.n_layer) for _ in roles):
        turn = [tensor_name(layer, roles[i % len(roles)]) for i, layer in enumerate(layers, len(drawn))]
        drawn += [t for t in turn if t in model.tensors and t not in drawn
                  and (not kinds or model.tensors[t].kind in kinds)]
    return drawn[:n]


def n_rows(model: ModelCopy, name: str) -> int:
    return model.tensors[name].shape[0]


def some_block(model: ModelCopy, name: str, rng: Random) -> int:
    return rng.randrange(len(model.blocks(name)))


def scaled_block(kind: str, factor: float, n: int) -> Kind:
    def cases(model: ModelCopy, rng: Random) -> Iterator[Case]:
        for name in targets(model, rng, MATRICES, n, list(cut.HALVES)):
            block = some_block(model, name, rng)
            edit = partial(cut.scale_blocks, name=name, factor=factor, block=block, step_only=factor > 0)
            yield fault(kind, name, edit, f"block {block}")
    return cases


def rows_zeroed(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, MATRICES, 10, list(cut.HALVES)):
        row = rng.randrange(n_rows(model, name))
        yield fault("zeroed row", name, partial(cut.zero_rows, name=name, rows=[row]), f"row {row}")


def tensor_tail_zeroed(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, MATRICES, 6, list(cut.HALVES)):
        rows = range(n_rows(model, name) - rng.choice((2, 17, 64)), n_rows(model, name))
        yield fault("zeroed tail of a tensor", name, partial(cut.zero_rows, name=name, rows=rows), f"{len(rows)} rows")


def file_tail_zeroed(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for n_byte in (1 << 10, 40_000, 300_000, 2_000_000):
        met = cut.zero_tail(model.copy(), n_byte)
        yield fault("zeroed tail of the file", met[-1], partial(cut.zero_tail, n_byte=n_byte), f"{n_byte} bytes", met)


def nan_scale(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, MATRICES, 8, list(cut.HALVES)):
        block = some_block(model, name, rng)
        edit = partial(cut.scale_blocks, name=name, factor=float("nan"), block=block, step_only=True)
        yield fault("NaN scale", name, edit, f"block {block}")


def reordered(
    kind: str, roles: Sequence[str], n: int, order: Callable[[ModelCopy, str, Random], np.ndarray], least: int = 2,
) -> Kind:
    """Rows in another order, of the tensors that have the least number of them."""
    def cases(model: ModelCopy, rng: Random) -> Iterator[Case]:
        for name in (t for t in targets(model, rng, roles, n) if n_rows(model, t) >= least):
            yield fault(kind, name, partial(cut.reorder_rows, name=name, order=order(model, name, rng)))
    return cases


def two_rows(model: ModelCopy, name: str, rng: Random) -> np.ndarray:
    one, other = rng.sample(range(n_rows(model, name)), 2)
    return cut.swap_runs(n_rows(model, name), one, other, 1)


def two_heads(model: ModelCopy, name: str, rng: Random) -> np.ndarray:
    one, other = rng.sample(range(n_rows(model, name) // model.head_dim), 2)
    return cut.swap_runs(n_rows(model, name), one * model.head_dim, other * model.head_dim, model.head_dim)


def two_runs(model: ModelCopy, name: str, rng: Random) -> np.ndarray:
    one, other = rng.sample(range(n_rows(model, name) // 64), 2)
    return cut.swap_runs(n_rows(model, name), one * 64, other * 64, 64)


def rope_rows(model: ModelCopy, name: str, rng: Random) -> np.ndarray:
    order = cut.rope_order(n_rows(model, name), model.head_dim)
    return order if rng.random() < 0.5 else np.argsort(order)


def row_shift(model: ModelCopy, name: str, rng: Random) -> np.ndarray:
    return np.roll(np.arange(n_rows(model, name)), rng.choice((1, -1)))


def norm_plus_one(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in [*targets(model, rng, NORMS, 7), "output_norm.weight"]:
        yield fault("norm + 1", name, partial(cut.change_values, name=name, change=lambda x: x + 1))


def of_another_layer(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, (*MATRICES, *NORMS), 12):
        _, layer, role, _ = name.split(".")
        others = [tensor_name(i, role) for i in range(model.n_layer) if i != int(layer)]
        other = rng.choice([o for o in others if model.tensors[o].shape == model.tensors[name].shape])
        yield fault("tensor of another layer", name, partial(cut.take_data, name=name, other=other), f"from {other}")


def layers_exchanged(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for _ in range(5):
        one, other = sorted(rng.sample(range(model.n_layer), 2))
        pairs = [(n, n.replace(f"blk.{one}.", f"blk.{other}.")) for n in model.tensors if n.startswith(f"blk.{one}.")]

        def edit(m: ModelCopy, pairs: Sequence[tuple[str, str]] = tuple(pairs)) -> None:
            for left, right in pairs:
                cut.exchange(m, left, right)

        known = [n for n, _ in pairs if n.split(".")[2] in STAGE_OF]
        yield fault("two layers exchanged", f"blk.{one}", edit, f"with blk.{other}", known)


def transposed(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, ("attn_q", "attn_output"), 6):
        if len(set(model.tensors[name].shape)) == 1:
            yield fault("transposed square", name, partial(cut.change_values, name=name, change=np.transpose))


def gate_and_up(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, ("ffn_gate",), 6):
        up = name.replace("ffn_gate", "ffn_up")
        yield fault("gate and up exchanged", name, partial(cut.exchange, one=name, other=up), names=(name, up))


def times_eight(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, MATRICES, 8, list(cut.HALVES)):
        yield fault("tensor x 8", name, partial(cut.scale_blocks, name=name, factor=8.0))


def constant_added(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, MATRICES, 8, cut.LEAST):
        constant = rng.choice((0.01, -0.03, 0.1))
        yield fault("constant added", name, partial(cut.raise_least, name=name, constant=constant), f"{constant:+}")


def nibbles(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for name in targets(model, rng, MATRICES, 8, list(cut.NIBBLES)):
        yield fault("nibbles exchanged", name, partial(cut.exchange_nibbles, name=name))


def embedding_rows(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """Rows that the prompt reads at the embedding, and rows that only a tied head reads."""
    name, unread = "token_embd.weight", range(len(PROMPT) * 1000, len(PROMPT) * 1000 + 4000)
    for token in rng.sample(PROMPT, 3):
        edit = partial(cut.zero_rows, name=name, rows=[token])
        yield fault("embedding row of the prompt zeroed", name, edit, f"{token}")
    untied = partial(cut.take_data, name="output.weight", other=name) if not model.is_tied else write_head
    for n in (1, 400, 4000):
        rows = sorted(rng.sample(sorted(set(unread) - set(PROMPT)), n))
        edit = partial(cut.zero_rows, name=name, rows=rows)
        yield fault("embedding rows zeroed, unreached", name, edit, f"{n} rows", both=untied, reached=False)
        if model.is_tied and n > 1:
            yield Case("fault", "tied head's rows zeroed", f"{name} {n} rows", edit, (None, "logits"), (name,))


def write_head(model: ModelCopy) -> None:
    """Write a tied head out as its own tensor."""
    model.tensors["output.weight"] = model.tensors["token_embd.weight"]


FAULTS: dict[str, Kind] = {
    "block scale x 64": scaled_block("block scale x 64", 64.0, 10),
    "block sign": scaled_block("block sign", -1.0, 10),
    "zeroed row": rows_zeroed,
    "zeroed tail of a tensor": tensor_tail_zeroed,
    "zeroed tail of the file": file_tail_zeroed,
    "NaN scale": nan_scale,
    "two rows exchanged": reordered("two rows exchanged", MATRICES, 8, two_rows),
    "q heads exchanged": reordered("q heads exchanged", ("attn_q",), 5, two_heads),
    "runs of 64 rows exchanged": reordered(
        "runs of 64 rows exchanged", ("attn_k", "ffn_gate", "ffn_up"), 6, two_runs, least=128),
    "q or k in the other RoPE order": reordered("q or k in the other RoPE order", ("attn_q", "attn_k"), 8, rope_rows),
    "rows shifted by one": reordered("rows shifted by one", MATRICES, 8, row_shift),
    "norm + 1": norm_plus_one,
    "tensor of another layer": of_another_layer,
    "two layers exchanged": layers_exchanged,
    "transposed square": transposed,
    "gate and up exchanged": gate_and_up,
    "tensor x 8": times_eight,
    "constant added": constant_added,
    "nibbles exchanged": nibbles,
    "embedding": embedding_rows,
}
