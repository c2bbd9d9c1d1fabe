"""Rules on a file's keys: what they say of its shapes and its vocabulary, of its family, and of known models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from core.audit.finding import Strength
from core.audit.known_models import known_model, unlike_known
from core.audit.rule import Rule, Seen, Spot, layer_of, role_of
from core.formats.architectures import ARCHS
from core.formats.model_file import LazyArray, ModelFile

SPECIAL_ID = re.compile(r"tokenizer\.ggml\.\w+_token_id")


@dataclass(frozen=True, slots=True)
class KeyShape:
    """A product of keys that is a dimension of a tensor. unless: a tensor or key with which it need not be."""

    keys: tuple[str, ...]
    role: str
    axis: int
    unless: tuple[str, ...] = ()


LATENT = ("attention.kv_lora_rank", "attention.key_length_swa")
KEY_SHAPES = (
    KeyShape(("embedding_length",), "token_embd.weight", 1), KeyShape(("vocab_size",), "token_embd.weight", 0),
    KeyShape(("embedding_length",), "output_norm.weight", 0), KeyShape(("embedding_length",), "output.weight", 1),
    KeyShape(("embedding_length",), "attn_norm.weight", 0), KeyShape(("embedding_length",), "ffn_norm.weight", 0),
    KeyShape(("embedding_length",), "attn_q.weight", 1), KeyShape(("embedding_length",), "attn_k.weight", 1),
    KeyShape(("embedding_length",), "attn_v.weight", 1), KeyShape(("embedding_length",), "attn_output.weight", 0),
    KeyShape(("attention.head_count", "attention.key_length"), "attn_q.weight", 0, LATENT),
    KeyShape(("attention.head_count_kv", "attention.key_length"), "attn_k.weight", 0, LATENT),
    KeyShape(("attention.head_count_kv", "attention.value_length"), "attn_v.weight", 0, LATENT),
    KeyShape(("embedding_length",), "ffn_gate.weight", 1), KeyShape(("embedding_length",), "ffn_up.weight", 1),
    KeyShape(("embedding_length",), "ffn_down.weight", 0),
    KeyShape(("feed_forward_length",), "ffn_gate.weight", 0), KeyShape(("feed_forward_length",), "ffn_down.weight", 1),
)


def arch_name(file: ModelFile) -> str:
    """The architecture that the file names; "" where it names none."""
    name = file.keys.get("general.architecture")
    return name if isinstance(name, str) else ""


def arch_number(file: ModelFile, key: str, layer: int | None = None) -> int | None:
    """A whole number under the architecture's name, of a layer where the file gives one a layer; None without it."""
    value = file.key(f"{arch_name(file)}.{key}")
    if isinstance(value, list):
        value = value[layer] if layer is not None and layer < len(value) else None
    if value is None and key in ("attention.key_length", "attention.value_length"):
        width, heads = (arch_number(file, k, layer) for k in ("embedding_length", "attention.head_count"))
        return width // heads if width and heads else None
    if value is None and key == "attention.head_count_kv":
        return arch_number(file, "attention.head_count", layer)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def n_token(file: ModelFile) -> int | None:
    """Tokens of the file's vocabulary; None where it has none."""
    tokens = file.keys.get("tokenizer.ggml.tokens")
    return tokens.count if isinstance(tokens, LazyArray) and tokens.count else None


def _shapes(seen: Seen) -> Iterator[Spot]:
    """Only of a file that is not run: of one that is, every shape has been held to its keys."""
    if seen.arch is not None:
        return
    for rule in KEY_SHAPES:
        if any(arch_number(seen.file, key) is not None for key in rule.unless):
            continue
        for name, weight in seen.file.weights.items():
            sizes = [arch_number(seen.file, key, layer_of(name)) for key in rule.keys]
            if role_of(name) != rule.role or rule.axis >= len(weight.shape) or None in sizes:
                continue
            wanted = 1
            for size in sizes:
                wanted *= size or 0
            if wanted != weight.shape[rule.axis]:
                keys = " x ".join(f"{arch_name(seen.file)}.{key}" for key in rule.keys)
                yield Spot(name, float(weight.shape[rule.axis]), words={
                    "shape": list(weight.shape), "key": keys, "wanted": wanted})
                break


def _layers(seen: Seen) -> Iterator[Spot]:
    n_layer = arch_number(seen.file, "block_count")
    found = sorted({layer for name in seen.file.weights if (layer := layer_of(name)) is not None})
    if n_layer is None or not found:
        return
    known = set(found)
    missing = next((i for i in range(n_layer) if i not in known), None)
    if found[-1] >= n_layer:
        yield Spot(None, float(found[-1]), words={"n": n_layer, "what": f"has tensors of layer {found[-1]}"})
    elif missing is not None:
        yield Spot(None, float(missing), words={"n": n_layer, "what": f"has no tensor of layer {missing}"})


def _heads(seen: Seen) -> Iterator[Spot]:
    heads, shared = (arch_number(seen.file, f"attention.head_count{part}") for part in ("", "_kv"))
    if heads and shared and heads % shared:
        yield Spot(None, heads / shared, words={"text": f"{heads} query heads cannot share {shared} key-value heads"})
    turned, width = (arch_number(seen.file, key) for key in ("rope.dimension_count", "attention.key_length"))
    latent = arch_number(seen.file, "attention.kv_lora_rank")
    if turned and width and turned > width and not latent and seen.arch is None:
        yield Spot(None, turned / width, words={"text": f"RoPE of {turned} channels cannot turn heads of {width}"})
    used, experts = (arch_number(seen.file, key) for key in ("expert_used_count", "expert_count"))
    if used and experts and used > experts:
        yield Spot(None, used / experts, words={"text": f"{used} of {experts} experts cannot be used"})


def _tokens(seen: Seen) -> Iterator[Spot]:
    embedding, count = seen.file.weights.get("token_embd.weight"), n_token(seen.file)
    if embedding is not None and len(embedding.shape) == 2 and count is not None and count > embedding.shape[0]:
        n_row = embedding.shape[0]
        yield Spot("token_embd.weight", float(count - n_row), words={"n": count, "n_row": n_row})


def _special_ids(seen: Seen) -> Iterator[Spot]:
    count = n_token(seen.file)
    for key, value in seen.file.keys.items():
        if count is not None and SPECIAL_ID.fullmatch(key) and isinstance(value, int) and not 0 <= value < count:
            yield Spot(None, float(value), words={"key": key, "n": count})


def _expected(seen: Seen) -> Iterator[Spot]:
    family = ARCHS.get(arch_name(seen.file))
    layers = sorted({layer_of(n) for n in seen.file.weights if role_of(n) == "attn_q.weight"} - {None}, key=str)
    for role in family.expects if family is not None and layers else ():
        full = role if role.endswith(".bias") else f"{role}.weight"
        lost = [layer for layer in layers if f"blk.{layer}.{full}" not in seen.file.weights
                and f"blk.{layer}.{role}" not in seen.file.weights]
        if lost:
            where = "no layer" if len(lost) == len(layers) else f"not layer {', '.join(map(str, lost[:4]))}"
            yield Spot(f"blk.{lost[0]}.{full}", float(len(lost)), words={
                "role": full, "arch": arch_name(seen.file), "where": where})


def _unlike_known(seen: Seen) -> Iterator[Spot]:
    known = known_model(seen.file)
    for key, value, usual in unlike_known(seen.file, known) if known is not None else ():
        yield Spot(None, float(value), words={
            "key": key, "value": f"{value:g}", "usual": " or ".join(f"{u:g}" for u in usual), "model": known.name,
            "source": known.source} if known is not None else {})


KEY_RULES = (
    Rule("shape", Strength.PROOF, _shapes, "{tensor} has shape {shape}, and {key} is {wanted}",
         "a tensor's shape is what the keys say"),
    Rule("layers", Strength.PROOF, _layers, "block_count is {n}, and the file {what}",
         "the file has the layers that block_count says, and no other"),
    Rule("keys", Strength.PROOF, _heads, "{text}", "heads share evenly, RoPE fits into a head, experts are enough"),
    Rule("token_row", Strength.PROOF, _tokens,
         "the vocabulary has {n} tokens and {tensor} {n_row} rows: tokens from {n_row} on have none",
         "every token of the vocabulary has a row of the embedding"),
    Rule("special_id", Strength.PROOF, _special_ids, "{key} is {measured:.0f}, and the vocabulary has {n} tokens",
         "a special token is one of the vocabulary's"),
    Rule("expected", Strength.HINT, _expected, "every {arch} has {role}, and {where} of this file does",
         "a tensor that every model of the family has is there"),
    Rule("known_key", Strength.HINT, _unlike_known,
         "{key} is {value}; models of these shapes ({model}) have {usual}", "the keys are those of the known model "
         "with the same shapes"),
)
