"""Twins of a trained file: faults under another quant type, harmless files, clean pairs. See cases.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from random import Random

import numpy as np
from gguf import GGMLQuantizationType as T
from gguf import GGUFValueType as V

from tests.trained import surgery as cut
from tests.trained.cases import MATRICES, NORMS, PROMPT, Case, Kind, place_of, targets, write_head
from tests.trained.quantisers import Floats, fits, other_rounding_q4_1
from tests.trained.surgery import Edit, ModelCopy

FINE = (T.Q8_0, T.F16, T.F32, T.BF16, T.Q5_1, T.Q5_0, T.Q6_K, T.Q5_K, T.Q4_K, T.Q4_1, T.Q4_0)  # similar or better
UNDER = (T.Q8_0, T.Q5_1, T.Q5_0, T.Q4_0, T.Q6_K, T.Q5_K, T.Q4_K)
LOW = (T.Q3_K, T.Q2_K)
PROMPTS = (PROMPT, (504, 3575, 282, 4649, 314), (1, 1, 1, 1), (2683,), (19556, 284, 260, 905, 28, 30, 340, 506, 253))


def row_times(factor: float) -> Callable[[Floats, Random], Floats]:
    def change(x: Floats, rng: Random) -> Floats:
        x[rng.randrange(len(x))] *= factor
        return x
    return change


def block_times(factor: float) -> Callable[[Floats, Random], Floats]:
    def change(x: Floats, rng: Random) -> Floats:
        row, start = rng.randrange(len(x)), 32 * rng.randrange(x.shape[1] // 32)
        x[row, start:start + 32] *= factor
        return x
    return change


def rows_swapped(x: Floats, rng: Random) -> Floats:
    one, other = rng.sample(range(len(x)), 2)
    x[[one, other]] = x[[other, one]]
    return x


def columns_zeroed(x: Floats, rng: Random) -> Floats:
    start = 16 * rng.randrange(x.shape[1] // 16)
    x[:, start:start + 16] = 0
    return x


HIDDEN: dict[str, Callable[[Floats, Random], Floats]] = {
    "zeroed row": row_times(0), "row x 0.5": row_times(0.5), "row x 1.5": row_times(1.5),
    "block x 2": block_times(2), "block x -1": block_times(-1), "block x 64": block_times(64),
    "tensor x 1.15": lambda x, rng: x * 1.15, "tensor x 1.5": lambda x, rng: x * 1.5,
    "two rows exchanged": rows_swapped, "16 columns zeroed": columns_zeroed,
}


def retyped(model: ModelCopy, name: str, kind: T, change: Callable[[Floats], Floats] = lambda x: x) -> None:
    """A tensor in another type, from its own values or from a change of them."""
    cut.change_values(model, name, change, kind)


def under(kind: T, group: str, n: int) -> Kind:
    """Faults in a tensor that is requantised, too: the type's rounding must not explain them."""
    def cases(model: ModelCopy, rng: Random) -> Iterator[Case]:
        whats = rng.sample(list(HIDDEN), len(HIDDEN))
        room = [t for t in targets(model, rng, MATRICES, 7 * model.n_layer)
                if fits(kind, model.tensors[t].shape[1]) and model.tensors[t].kind != kind]
        for i in range(n if room else 0):
            name, what = room[i % len(room)], whats[i % len(whats)]
            change = partial(HIDDEN[what], rng=Random(f"{name} {what}"))
            edit = partial(retyped, name=name, kind=kind, change=change)
            yield Case(group, f"under {kind.name}", f"{name} {what}", edit, place_of(name), (name,))
    return cases


def one_retyped(model: ModelCopy, rng: Random) -> Iterator[Case]:
    for kind in FINE:
        for name in targets(model, rng, MATRICES, 7 * model.n_layer):
            if fits(kind, model.tensors[name].shape[1]) and model.tensors[name].kind != kind:
                yield harmless("one tensor retyped", f"{name} {kind.name}", partial(retyped, name=name, kind=kind))
                break


def all_retyped(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """Every matrix of the layers that fits; and every ffn_down, the rest left."""
    for kind in (T.Q8_0, T.F16, T.F32, T.BF16, T.Q5_1, T.Q5_0, T.Q4_0):
        yield harmless("all tensors retyped", kind.name, partial(retype_all, kind=kind, roles=MATRICES))
    for kind in (T.Q4_K, T.Q6_K):
        edit = partial(retype_all, kind=kind, roles=("ffn_down",))
        yield harmless("all tensors retyped", f"ffn_down {kind.name}", edit)
    yield harmless("all tensors retyped", "token_embd F16", partial(retyped, name="token_embd.weight", kind=T.F16))


def retype_all(model: ModelCopy, kind: T, roles: tuple[str, ...]) -> None:
    for name, tensor in list(model.tensors.items()):
        if name.split(".")[-2] in roles and fits(kind, tensor.shape[-1]) and tensor.kind != kind:
            retyped(model, name, kind)


def harmless(kind: str, label: str, edit: Edit, both: Edit | None = None) -> Case:
    return Case("harmless", kind, label, edit, both=both)


def other_rounding(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """The same type by another quantiser: narrower ranges, a search weighted by importance, another original.

    Stored levels that are rounded to a narrower range keep their level, so that every weight shrinks alike, which no
    quantiser of an original does: ranges are narrowed on what could have been the original.
    """
    def edit(m: ModelCopy, names: list[str], narrow: float, weighted: bool, dither: bool) -> None:
        for name in names:
            values = cut.dithered(m, name, 7) if dither else m.values(name)
            rand = np.random.default_rng(5)
            weights = np.tile(rand.lognormal(0, 1, values.shape[1]).astype(np.float32), (len(values), 1))
            m.put_bytes(name, other_rounding_q4_1(values, narrow, weights if weighted else None))

    ways = {"ranges x 0.97": (0.97, False, True), "ranges x 0.93": (0.93, False, True),
            "importance": (1.0, True, False), "another original": (1.0, False, True),
            "another original, importance": (1.0, True, True)}
    every = [n for n, t in model.tensors.items() if t.kind == T.Q4_1]
    for way, (narrow, weighted, dither) in ways.items():
        some = [*([n] for n in targets(model, rng, MATRICES, 2, [T.Q4_1])), every]
        for names in (s for s in some if s):
            label = f"{names[0] if len(names) == 1 else 'every Q4_1'} {way}"
            yield harmless("same type, other rounding", label, partial(
                edit, names=names, narrow=narrow, weighted=weighted, dither=dither))


def norms_as_f16(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """Norms written in F16; rounded, and exactly where both files hold values that F16 holds."""
    def rounded(m: ModelCopy, names: list[str]) -> None:
        for name in names:
            cut.change_values(m, name, lambda x: x.astype(np.float16).astype(np.float32))

    def as_f16(m: ModelCopy, names: list[str]) -> None:
        for name in names:
            retyped(m, name, T.F16)

    every = [n for n in model.tensors if n.endswith("_norm.weight")]
    for names in (targets(model, rng, NORMS, 1), every):
        label = names[0] if len(names) == 1 else "every norm"
        yield harmless("norms as F16", f"{label}, rounded", partial(as_f16, names=names))
        yield harmless("norms as F16", f"{label}, exact", partial(as_f16, names=names), partial(rounded, names=names))


def container(model: ModelCopy, rng: Random) -> Iterator[Case]:
    """What a file says of itself, the order of its tensors, its tokenizer's rules: no number hangs on it."""
    keys: Mapping[str, Mapping[str, object]] = {
        "general.name": {"general.name": "another name", "general.author": "someone"},
        "general.file_type": {"general.file_type": 7, "general.quantization_version": 2},
        "context_length": {f"{model.arch}.context_length": 4096},
        "vocab_size": {f"{model.arch}.vocab_size": model.tensors["token_embd.weight"].shape[0]},
        "chat template": {"tokenizer.chat_template": "{{ messages[0]['content'] }}"},
        "bos": {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": 2},
        "pre-tokenizer": {"tokenizer.ggml.pre": "gpt-2"},
        "importance matrix": {"quantize.imatrix.file": "imatrix.dat", "quantize.imatrix.entries_count": 210},
    }
    for label, values in keys.items():
        yield harmless("keys that change no number", label, partial(set_whole_keys, values=values))
    yield harmless("container", "alignment 64", partial(align, alignment=64))
    yield harmless("container", "alignment 4096", partial(align, alignment=4096))
    yield harmless("container", "tensors in another order", partial(reorder, seed=1))
    yield harmless("container", "tensors in reverse order", partial(reorder, seed=None))
    yield harmless("container", "keys in another order", reorder_keys)
    if model.is_tied:
        yield harmless("tied head written out", "output.weight", write_head)
        yield harmless("tied head written out", "output.weight as F32", lambda m: m.put_values(
            "output.weight", m.values("token_embd.weight"), T.F32))


def set_whole_keys(model: ModelCopy, values: Mapping[str, object]) -> None:
    for key, value in values.items():
        model.set_key(key, value)


def align(model: ModelCopy, alignment: int) -> None:
    model.set_key("general.alignment", alignment, V.UINT32)
    model.alignment = alignment


def reorder(model: ModelCopy, seed: int | None) -> None:
    names = list(model.tensors)
    order = names[::-1] if seed is None else cut.shuffled(names, seed)
    model.tensors = {n: model.tensors[n] for n in order}


def reorder_keys(model: ModelCopy) -> None:
    first = "general.architecture"
    model.keys = {k: model.keys[k] for k in (first, *cut.shuffled([k for k in model.keys if k != first], 2))}


def clean_pairs(compute: str) -> Kind:
    """The same weights: alone, other threads, as .apr, another declared compute; each with five prompts."""
    others = [c for c in ("f32", "q8", "bf16") if c != compute]

    def cases(model: ModelCopy, rng: Random) -> Iterator[Case]:
        for i, prompt in enumerate(PROMPTS):
            for kind, more in {
                "the same file": {}, "1 thread against 2": {"a": {"threads": 1}, "b": {"threads": 2}},
                ".apr F32": {"apr": "f32"}, ".apr F16": {"apr": "f16"},
                **{f"against {c}": {"b": {"compute": c}} for c in others},
            }.items():
                yield Case("clean", kind, f"prompt {i}", prompt=prompt, **more)  # type: ignore[arg-type]
        yield Case("check", "check: clean", "the file", alone=True, prompt=PROMPTS[0])
    return cases


UNDERS: dict[str, Kind] = {
    **{f"under {t.name}": under(t, "requantised", 8) for t in UNDER},
    **{f"under {t.name}": under(t, "requantised low", 10) for t in LOW},
}
HARMLESS: dict[str, Kind] = {
    "one tensor retyped": one_retyped, "all tensors retyped": all_retyped, "same type, other rounding": other_rounding,
    "norms as F16": norms_as_f16, "container": container,
}
