"""Say what a training run is: model presets, modes, the user's options and the plan that they settle to. Nothing runs.

Units: tokens for batch x seq, steps for every interval, nats for losses. Torch is not needed here.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

from core.formats.architectures import ARCHS
from core.model.arch import INNER, Arch
from core.model.layers import Rope
from core.system.errors import FileError, UsageError, os_reason
from core.system.limits import BATCH, CONFIG_BYTES
from core.system.regular_file import read_text

ARCH = "llama"
BETAS, EPS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 1e-8, 0.01, 1.0
VAL_WINDOWS = 32       # held-out windows of one validation
SEEDS = 1 << 63        # torch and numpy both take a seed below this
MOST = 1 << 31         # of a size in a config file
WARM_UP_SHARE = 10     # warm-up takes at most this part of a run: a tenth


@dataclass(frozen=True, slots=True)
class Preset:
    """A model's sizes and the run that fits them. corpus_mib: text read of a folder; None reads all."""

    n_layer: int
    d_model: int
    n_head: int
    n_kv_head: int
    d_ff: int
    n_vocab: int
    n_ctx: int
    batch: int
    seq: int
    steps: int
    steps_per_epoch: int
    rope_base: float = 10000.0
    eps: float = 1e-5
    lr_factor: float = 1.0   # times the mode's lr: a small model trains at a higher rate
    corpus_mib: int | None = None

    def arch(self) -> Arch:
        """The sizes as the forward reads them: a tied head, adjacent RoPE pairs, no biases."""
        head_dim = self.d_model // self.n_head
        return Arch(
            ARCH, self.n_layer, self.d_model, self.n_head, self.n_kv_head, head_dim, self.d_ff, self.n_vocab,
            self.n_ctx, self.eps, Rope(self.rope_base, head_dim, ARCHS[ARCH].pairing), qk_norm=False, tied=True)


PRESETS = {
    "370m": Preset(24, 1024, 16, 4, 2816, 50257, 4096, batch=8, seq=1024, steps=1000, steps_per_epoch=100),
    "tiny": Preset(4, 128, 4, 2, 384, 2048, 512, batch=8, seq=128, steps=100, steps_per_epoch=20, lr_factor=10.0,
                   corpus_mib=4),
}


@dataclass(frozen=True, slots=True)
class Mode:
    """What the mode decides, all of it together: a fresh model must not be judged by a finetuned one's cap."""

    lr: float
    warm_up: int
    target_val_loss: float
    cap: float | None  # of the first epoch's validation loss; None: 2 ln(vocabulary), twice what guessing costs


MODES = {
    "from-scratch": Mode(3e-4, 1000, 3.0, None),
    "finetune": Mode(5e-5, 100, 2.2, 10.0),
}


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the user asked for; None leaves the choice to the preset, the mode or the run that is resumed."""

    out: Path
    config: str | None = None
    corpus: Path | None = None
    tokenizer: Path | None = None
    steps: int | None = None
    batch: int | None = None
    seq: int | None = None
    steps_per_epoch: int | None = None
    mode: str | None = None
    init: Path | None = None
    device: str = "auto"
    seed: int | None = None
    lr: float | None = None
    warm_up: int | None = None
    checkpoint_every: int | None = None
    grads_every: int | None = None
    budget_ms: float | None = None
    parallel: str = "auto"
    compile: str = "auto"
    threads: int | None = None
    resume: bool = False
    oracle: bool = False
    command: str = ""
    checkpoints: bool = True  # False for a measurement, which is never resumed


@dataclass(frozen=True, slots=True)
class Plan:
    """A settled run: what run.json keeps and a resume reads back. reasons: the choices nobody made by hand."""

    config: str
    arch: Arch
    mode: str
    steps: int
    batch: int
    seq: int
    steps_per_epoch: int
    lr: float
    lr_min: float
    warm_up: int
    seed: int
    cap: float
    target_val_loss: float
    checkpoint_every: int
    grads_every: int
    corpus: str | None
    corpus_mib: int | None
    tokenizer: str | None
    init: str | None
    reasons: tuple[str, ...] = ()

    @property
    def step_tokens(self) -> int:
        """Tokens of one step."""
        return self.batch * self.seq


def n_parameters(arch: Arch) -> int:
    """Count the parameters, a tied head once."""
    d, q, kv = arch.d_model, arch.n_head * arch.head_dim, arch.n_kv_head * arch.head_dim
    layer = 2 * d * q + 2 * d * kv + 3 * d * arch.d_ff + 2 * d
    return (1 if arch.tied else 2) * arch.n_vocab * d + arch.n_layer * layer + d


def learning_rate(plan: Plan, step: int) -> float:
    """Return the rate of a step: lr * (step + 1) / warm_up, then a cosine that ends at lr_min on the last step."""
    if step < plan.warm_up:
        return plan.lr * (step + 1) / plan.warm_up
    done = min(1.0, (step - plan.warm_up) / max(1, plan.steps - 1 - plan.warm_up))
    return plan.lr_min + (plan.lr - plan.lr_min) * 0.5 * (1 + math.cos(math.pi * done))


def settle(options: TrainOptions, arch: Arch | None = None) -> Plan:
    """Turn options into a plan; arch is the --init file's. UsageError names what does not fit."""
    name = options.config or "tiny"
    preset = read_preset(name)
    mode = options.mode or ("from-scratch" if options.init is None else "finetune")
    _validate_mode(mode, options)
    row, reasons = MODES[mode], []
    if arch is not None:
        reasons.append(f"sizes of {options.init}, not of config {name}")
    arch = arch or preset.arch()
    steps = options.steps or preset.steps
    warm_up = min(row.warm_up, max(1, steps // WARM_UP_SHARE)) if options.warm_up is None else options.warm_up
    if options.warm_up is None and warm_up != row.warm_up:
        reasons.append(f"warm-up {warm_up}: {mode}'s {row.warm_up} is more than a tenth of {steps} steps")
    per_epoch = options.steps_per_epoch or preset.steps_per_epoch
    lr = options.lr or row.lr * preset.lr_factor
    plan = Plan(
        config=name, arch=arch, mode=mode, steps=steps, batch=options.batch or preset.batch,
        seq=options.seq or preset.seq, steps_per_epoch=per_epoch,
        lr=lr, lr_min=min(lr, max(lr * 1e-2, 1e-7)), warm_up=warm_up,
        seed=42 if options.seed is None else options.seed, cap=row.cap or 2 * math.log(arch.n_vocab),
        target_val_loss=row.target_val_loss, checkpoint_every=options.checkpoint_every or per_epoch,
        grads_every=options.grads_every or max(1, min(20, per_epoch // 4)),
        corpus=_absolute(options.corpus), corpus_mib=preset.corpus_mib if options.corpus is None else None,
        tokenizer=_absolute(options.tokenizer), init=_absolute(options.init), reasons=tuple(reasons))
    validate_plan(plan)
    return plan


def read_preset(name: str) -> Preset:
    """Return a preset by name, or of a .toml file: keys of Preset, and `base`, a preset that gives the rest."""
    if name in PRESETS:
        return PRESETS[name]
    path = Path(name)
    if path.suffix != ".toml":
        raise UsageError(f"--config {name}: {', '.join(PRESETS)} or a .toml file is needed.")
    try:
        values = tomllib.loads(read_text(path, CONFIG_BYTES, ""))
    except (FileError, ValueError, RecursionError) as error:
        raise FileError(f"--config {name}: {os_reason(error)}. "
                        "A TOML file with the sizes of a model is needed.") from error
    return _preset_of(name, values)


def validate_plan(plan: Plan) -> None:
    """Refuse sizes that no run can have; UsageError says which."""
    a = plan.arch
    rules = (
        (plan.init is not None or a.d_model == a.n_head * a.head_dim,
         f"d_model {a.d_model} does not divide into {a.n_head} heads: head_dim would "
         f"be {a.d_model / a.n_head:g}. Change n_head or d_model"),
        (plan.batch <= BATCH, f"batch {plan.batch}: 1 to {BATCH} sequences a step are needed"),
        (a.head_dim % 2 == 0, f"head_dim {a.head_dim} is odd; RoPE turns channels in pairs. Change n_head or d_model"),
        (a.n_head % a.n_kv_head == 0, f"{a.n_head} query heads cannot share {a.n_kv_head} key-value heads evenly"),
        (plan.seq <= a.n_ctx, f"--seq {plan.seq} is longer than the model's context of {a.n_ctx}"),
        (0 <= plan.seed < SEEDS, f"--seed {plan.seed}: a whole number from 0 to 2^63 - 1 is needed"),
        (plan.warm_up <= plan.steps, f"--warm-up {plan.warm_up} is longer than the run of {plan.steps} steps"),
    )
    for holds, found in rules:
        if not holds:
            raise UsageError(f"{plan.config}: {found}.")


def plan_of(values: Mapping[str, Any]) -> Plan:
    """Read a plan back from run.json; KeyError or TypeError where it is none."""
    arch = {name: value for name, value in values["arch"].items() if name not in INNER}
    arch["rope"] = Rope(**arch["rope"])
    return Plan(**{**values, "arch": Arch(**arch), "reasons": tuple(values["reasons"])})


def resumed(plan: Plan, options: TrainOptions) -> Plan:
    """Return the plan of a run that goes on: only --steps may change; UsageError names anything else that was given."""
    wanted = _changed(plan, options)
    if wanted:
        told = ", ".join(f"--{name.replace('_', '-')} {new} (it began with {old})" for name, old, new in wanted)
        raise UsageError(f"--resume goes on with the run as it began, but the command says {told}. Leave these out.")
    if options.steps is None or options.steps == plan.steps:
        return plan
    note = f"steps {plan.steps} -> {options.steps} on resume: the cosine is another from here on"
    return replace(plan, steps=options.steps, reasons=(*plan.reasons, note))


def _changed(plan: Plan, options: TrainOptions) -> list[tuple[str, Any, Any]]:
    names = ("config", "batch", "seq", "steps_per_epoch", "mode", "seed", "lr", "warm_up", "checkpoint_every",
             "grads_every")
    pairs = [(name, getattr(plan, name), getattr(options, name)) for name in names]
    paths = ("corpus", "tokenizer", "init")
    pairs += [(name, getattr(plan, name), _absolute(getattr(options, name))) for name in paths]
    return [(name, old, new) for name, old, new in pairs if new is not None and new != old]


def _validate_mode(mode: str, options: TrainOptions) -> None:
    if mode not in MODES:
        raise UsageError(f"--mode {mode}: {' or '.join(MODES)} is needed.")
    if mode == "finetune" and options.init is None:
        raise UsageError("--mode finetune needs a model to go on from: give --init FILE, or --mode from-scratch.")
    if mode == "from-scratch" and options.init is not None:
        raise UsageError(f"--mode from-scratch starts from random weights, so --init {options.init} would not be read. "
                         "Leave one of them out.")


def _preset_of(name: str, values: dict[str, Any]) -> Preset:
    base = values.pop("base", None)
    if base is not None and base not in tuple(PRESETS):  # a tuple: base may be a list, which has no hash
        raise UsageError(f"{name}: base {base!r} is not a preset; {', '.join(PRESETS)} are.")
    known = {f.name: f for f in fields(Preset)}
    for key, value in values.items():
        if key not in known:
            raise UsageError(f"{name} has the key {key!r}; known are base, {', '.join(known)}.")
        whole = known[key].type != "float"
        if type(value) not in ((int,) if whole else (int, float)) or not 0 < value < MOST:
            kind = "whole number" if whole else "number"
            raise UsageError(f"{name}: {key} is {value!r}; a {kind} above 0 and below 2^31 is needed.")
    missing = [name for name, f in known.items() if name not in values and f.default is MISSING]
    if base is None and missing:
        raise UsageError(f"{name} lacks {', '.join(missing)}. Give them, or a base such as base = \"tiny\".")
    return replace(PRESETS[base], **values) if base else Preset(**values)


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())
