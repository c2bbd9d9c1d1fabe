"""Small real training runs for tests: a corpus of a few files, a model of two layers, a run in well under a second."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from core.train.config import TrainOptions
from core.train.events import StepTaken, TrainEvent
from core.train.reader import open_run
from core.train.records import TrainResult
from core.train.run import train

SIZES = dict(n_layer=2, d_model=32, n_head=4, n_kv_head=2, d_ff=48, n_vocab=300, n_ctx=64, batch=4, seq=16, steps=6,
             steps_per_epoch=3, lr_factor=10.0)


def write_corpus(folder: Path, n_file: int = 24) -> Path:
    """Write text files whose next word can be learned, each one different."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["the", "residual", "stream", "carries", "a", "value", "from", "layer", "to", "layer", "and", "the", "norm",
             "divides", "it", "by", "its", "root"]
    for i in range(n_file):
        lines = [" ".join(words[(i + j * 5 + k) % len(words)] for k in range(12)) + f" {i * 7 + j}." for j in range(12)]
        (folder / f"text{i:02d}.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_config(path: Path, **changes) -> Path:
    """Write a TOML file of SIZES, with changes; None leaves a key out."""
    values = {k: v for k, v in (SIZES | changes).items() if v is not None}
    path.write_text("".join(f"{k} = {v!r}\n" for k, v in values.items()))
    return path


def options(folder: Path, **changes) -> TrainOptions:
    """Options of a small run below a folder, which then holds its corpus and config too."""
    if not (folder / "text").exists():
        write_corpus(folder / "text")
    config = folder / "small.toml"
    if not config.exists():
        write_config(config)
    given = dict(out=folder / "run", config=str(config), corpus=folder / "text", device="cpu", seed=3, threads=1)
    return TrainOptions(**(given | changes))


def run(folder: Path, **changes) -> TrainResult:
    """Train a small run."""
    return train(options(folder, **changes))


def events(folder: Path, **changes) -> list[TrainEvent]:
    """Train a small run and return what it told."""
    told: list[TrainEvent] = []
    train(options(folder, **changes), told.append)
    return told


def stop_after(n_step: int, log: list | None = None):
    """Return an emit and a cancelled that together stop a run after so many steps."""
    seen = [] if log is None else log

    def emit(event: TrainEvent) -> None:
        if isinstance(event, StepTaken):
            seen.append(event.step)

    return emit, lambda: len(seen) >= n_step - 1


def without_times(step) -> dict:
    """A step's figures that a second run on the same machine must repeat."""
    return {k: v for k, v in dataclasses.asdict(step).items() if k not in ("wall_ms", "tokens_per_sec")}


def logged_steps(folder: Path) -> list[dict]:
    """The steps of a run, without their times."""
    return [without_times(step) for step in open_run(folder).steps]


def same_weights(a: Path, b: Path) -> bool:
    """Whether two checkpoints hold the same bits, those of the optimizer too."""
    import torch
    from safetensors.torch import load_file

    pairs = [(load_file(p / n) for p in (a, b)) for n in ("model.safetensors", "optimizer.safetensors")]
    return all(x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x) for x, y in pairs)
