"""Write and read checkpoints: a folder each, whole or absent, with what a resume needs and a .gguf and .apr to trace.

    ckpt/step-000040/   model.safetensors  optimizer.safetensors  state.json  model.gguf  model.apr

The two newest and the best (lowest validation loss) are kept. The names of tensors are GGUF's throughout.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from core.formats.apr_writer import write_apr
from core.formats.gguf_writer import write_gguf
from core.formats.model_file import ModelFile, Value
from core.formats.tensor_stream import TensorStream
from core.model.arch import Arch
from core.system.arrays import Bytes
from core.system.atomic_folder import atomic_folder
from core.system.errors import FileError, OutputError, os_reason
from core.system.json_text import from_json, to_json
from core.system.limits import DOCUMENT_BYTES
from core.system.regular_file import read_file, refuse_irregular
from core.train.data.vocabulary import Vocabulary, vocabulary_keys
from core.train.model import spread

FOLDER, NAME = "ckpt", re.compile(r"step-([0-9]{6,})")
MODEL, OPTIMIZER, STATE = "model.safetensors", "optimizer.safetensors", "state.json"
EXPORTS = ("model.gguf", "model.apr")
FILES = {MODEL, OPTIMIZER, STATE, *EXPORTS}
NEEDED = ("steps_done", "tokens_seen", "memory", "best")  # of state.json
KEEP = 2
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass(frozen=True, slots=True)
class State:
    """Everything of a run at one place in it. state: what state.json holds (steps_done, cursor, memory ...)."""

    weights: Mapping[str, Tensor]
    moments: Mapping[str, Tensor]  # "exp_avg.NAME", "exp_avg_sq.NAME", "step.NAME"
    state: Mapping[str, Any]


def write_checkpoint(
    run: Path, steps_done: int, saved: State, arch: Arch, vocabulary: Vocabulary | None, best: int | None, note: str,
) -> Path:
    """Write the checkpoint after so many steps, drop what is neither new nor best; OutputError, with nothing lost."""
    target = run / FOLDER / f"step-{steps_done:06d}"
    try:
        with atomic_folder(target) as part:
            save_file({name: t.contiguous() for name, t in saved.weights.items()}, part / MODEL)
            save_file({name: t.contiguous() for name, t in saved.moments.items()}, part / OPTIMIZER)
            model = model_of(arch, vocabulary, note)
            streams = [_stream(name, t) for name, t in saved.weights.items()]
            write_gguf(part / EXPORTS[0], model, streams)
            write_apr(part / EXPORTS[1], model, streams)
            (part / STATE).write_text(to_json(dict(saved.state), indent=1))
    except (OSError, SafetensorError, OutputError) as error:
        raise OutputError(f"the checkpoint after {steps_done} steps could not be written: {os_reason(error)}. Those "
                          f"before it are whole; free some space and go on with --resume --out {run}.") from error
    _drop_old(run, best)
    return target


def checkpoints(run: Path) -> list[tuple[int, Path]]:
    """List the whole checkpoints of a run, oldest first."""
    folder = run / FOLDER
    names = [(NAME.fullmatch(path.name), path) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted((int(found[1]), path) for found, path in names if found)


def read_checkpoint(folder: Path) -> State:
    """Read a checkpoint; FileError names what is damaged."""
    try:
        state = from_json(read_file(folder / STATE, DOCUMENT_BYTES, ""), STATE, "")
        if missing := [name for name in NEEDED if name not in state]:
            raise ValueError(f"{STATE} lacks {', '.join(missing)}")
        for name in (MODEL, OPTIMIZER):
            refuse_irregular(folder / name, "")
        return State(load_file(folder / MODEL), load_file(folder / OPTIMIZER), state)
    except (FileError, OSError, ValueError, TypeError, SafetensorError) as error:
        raise FileError(f"{folder} is damaged: {os_reason(error)}. "
                        "Remove it; --resume then takes the one before it.") from error


def moments_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """AdamW's state under the names of the parameters; empty before the first step."""
    return {f"{kind}.{name}": optimizer.state[weight][kind].detach()
            for name, weight in model.named_parameters() if weight in optimizer.state for kind in MOMENTS}


def load_moments(model: torch.nn.Module, optimizer: torch.optim.Optimizer, moments: Mapping[str, Tensor]) -> None:
    """Put AdamW's state back, on the device of each parameter (fused AdamW has its step counter there too)."""
    for name, weight in model.named_parameters():
        if f"step.{name}" in moments:
            optimizer.state[weight] = {kind: _placed(moments[f"{kind}.{name}"], weight) for kind in MOMENTS}


def model_of(arch: Arch, vocabulary: Vocabulary | None, note: str) -> ModelFile:
    """The metadata of an export, as if a file had been opened."""
    name = arch.name
    keys: dict[str, Value] = {
        "general.architecture": name, "general.name": note, "general.file_type": 0,
        f"{name}.block_count": arch.n_layer, f"{name}.context_length": arch.n_ctx,
        f"{name}.embedding_length": arch.d_model,
        f"{name}.feed_forward_length": arch.d_ff, f"{name}.attention.head_count": arch.n_head,
        f"{name}.attention.head_count_kv": arch.n_kv_head, f"{name}.attention.layer_norm_rms_epsilon": arch.eps,
        f"{name}.attention.key_length": arch.head_dim, f"{name}.attention.value_length": arch.head_dim,
        f"{name}.rope.freq_base": arch.rope.base, f"{name}.rope.dimension_count": arch.rope.dim,
        f"{name}.vocab_size": arch.n_vocab, "apr.rope_type": {"adjacent": 0, "halves": 2}[arch.rope.pairing],
    }
    if vocabulary is not None:
        keys |= vocabulary_keys(vocabulary)
    return ModelFile(Path("model"), "safetensors", keys, {}, 0, "")


def _stream(name: str, tensor: Tensor) -> TensorStream:
    def pieces() -> Iterator[Bytes]:
        yield tensor.detach().cpu().float().contiguous().view(-1).numpy().view("uint8")

    return TensorStream(name, "F32", tuple(tensor.shape), pieces)


def _placed(moment: Tensor, weight: Tensor) -> Tensor:
    moment = moment.to(weight.device, copy=True)
    return spread(moment, weight).clone() if moment.ndim else moment


def _drop_old(run: Path, best: int | None) -> None:
    """Remove what is neither new nor best; a checkpoint in which somebody keeps files of their own stays."""
    for steps, path in checkpoints(run)[:-KEEP]:
        if steps != best:
            with contextlib.suppress(OSError):
                if {entry.name for entry in path.iterdir()} <= FILES:
                    shutil.rmtree(path)
