"""Run llama.cpp (through llama-cpp-python) on a GGUF file and take every stage by its eval callback, through ctypes.

It runs in the child process of process.py. CPU, one ubatch, no warm-up, flash attention off (else there is no kqv_out),
the KV cache in float32 unless a side says otherwise, weights as stored: repacked copies round activations otherwise.
A stage is known by the weight that its node reads; what reads none, by the node's name.
Source: ggml.h (struct ggml_tensor), llama.h (llama_context_params), as of llama-cpp-python 0.3.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

from core.formats.model_file import ModelFile
from core.formats.open_model import open_model
from core.model.arch import Arch, read_arch
from core.model.layers import FeedForward
from core.model.ops import TABLES
from core.model.stages import ROUTED, STAGES, Place, stage_named
from core.sources.engines.by_weight import dense_weights, join, sort_experts, stages_by_tensor, strip, usual_stages
from core.sources.engines.llama_cache import cache_words, set_cache
from core.sources.engines.process import LOG, Answer, Ask, last_lines, stages_wanted, tell
from core.system.arrays import Floats32
from core.system.errors import ArchError, FileError
from core.trace.engines import GELU_TABLE

UNKNOWN = FeedForward(0, "", "none")
F32, MAX_DIMS, MAX_SRC, MAX_NAME, OP_PARAMS_BYTES = 0, 4, 10, 64, 64
# (node's name before -N, operation or "" for any) -> stage, for nodes that read no weight
BY_NODE = {(node, "ROPE" if stage.operation == "rope" else ""): stage.name
           for stage in STAGES for node in stage.llama_cpp}
SCALED = "inp_scaled"  # the embedding where it is scaled
WEIGHTED = "ffn_moe_weighted"  # what the experts gave (or take) times their weights, its second source
PRODUCTS, PICKED = ("MUL_MAT", "MUL_MAT_ID"), ("MUL_MAT_ID", "ADD_ID")  # PICKED: a row of each chosen expert


class _Tensor(ctypes.Structure):
    """struct ggml_tensor, as far as it is read; _check_layout holds it to the library's own answers."""

    _fields_ = (
        ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * MAX_DIMS),
        ("nb", ctypes.c_size_t * MAX_DIMS), ("op", ctypes.c_int), ("op_params", ctypes.c_uint8 * OP_PARAMS_BYTES),
        ("flags", ctypes.c_int32), ("src", ctypes.c_void_p * MAX_SRC), ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * MAX_NAME),
    )


def capture(ask: Ask, folder: Path) -> tuple[Answer, dict[Place, Floats32]]:
    """Run the model watched and, for the witness, unwatched in a context of its own."""
    import llama_cpp
    from llama_cpp import llama_cpp as api
    tell(folder, "loading the model")
    api.llama_backend_init()
    options = api.llama_model_default_params()
    options.n_gpu_layers, options.use_extra_bufts = 0, False
    model = api.llama_model_load_from_file(str(ask.path).encode(), options)
    if not model:
        raise FileError(f"llama.cpp does not load {Path(ask.path).name}: {_log_words(folder)}")
    watcher = Watcher(ask, folder, Path(llama_cpp.__file__).parent / "lib")
    n_vocab = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    threads = ask.threads or _threads()
    logits = _decode(api, model, ask, threads, n_vocab, watcher)
    tell(folder, "running unwatched")
    unwatched = _decode(api, model, ask, threads, n_vocab, None) if ask.witness else None
    values = {**watcher.values(), (None, "logits"): logits}
    answer = Answer(
        engine=f"llama.cpp (llama-cpp-python {llama_cpp.__version__}, ggml {watcher.version()})",
        compute="q8" if watcher.reads_packed else "f32", dtype="float32",
        arch=_meta(api, model, "general.architecture"), n_layer=api.llama_model_n_layer(model),
        d_model=api.llama_model_n_embd(model), n_vocab=n_vocab, tokens=ask.tokens, threads=threads, device="cpu",
        kernel=f"ggml CPU, weights as stored, {cache_words(ask.cache)}" + (
            f", {GELU_TABLE}" if any(layer.ffn and layer.ffn.act in TABLES
                                  for layer in (watcher.arch.layers if watcher.arch else ())) else ""),
        same_logits=None if unwatched is None else unwatched.tobytes() == logits.tobytes())
    return answer, values


def _decode(
    api: Any, model: Any, ask: Ask, threads: int, n_vocab: int, watcher: Watcher | None  # noqa: ANN401
) -> Floats32:
    """Run the tokens in one ubatch of a fresh context; returns the logits [1, V] of the last one."""
    tokens, n = ask.tokens, len(ask.tokens)
    options = api.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_ubatch, options.n_seq_max = n, n, n, 1
    options.n_threads, options.n_threads_batch, options.no_perf = threads, threads, True
    set_cache(options, ask.cache)
    if watcher is not None:
        callback = api.ggml_backend_sched_eval_callback(watcher)
        options.cb_eval = callback
    context = api.llama_init_from_model(model, options)
    if not context:
        raise FileError(f"llama.cpp makes no context for {n} tokens.")
    batch = api.llama_batch_init(n, 0, 1)
    batch.n_tokens = n
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, i, 1
        batch.seq_id[i][0] = 0
        batch.logits[i] = 1  # of every token: else the last layer drops the rows of the others
    code = api.llama_decode(context, batch)
    if watcher is not None and watcher.failure is not None:
        raise watcher.failure
    if code != 0:
        raise FileError(f"llama.cpp stopped with code {code}.")
    found = np.ctypeslib.as_array(api.llama_get_logits_ith(context, n - 1), (n_vocab,)).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    return found.astype(np.float32).reshape(1, -1)


class Watcher:
    """The eval callback: says which nodes are wanted, and copies each when it has been computed."""

    def __init__(self, ask: Ask, folder: Path, libraries: Path) -> None:
        """Read the file's layers, and open the ggml library beside the package's own."""
        file = open_model(Path(ask.path))
        self.ask, self.folder, self.arch = ask, folder, _arch(file)
        depth = 0 if self.arch else int(file.key(f"{file.key('general.architecture')}.block_count") or 0)
        self.by = stages_by_tensor(self.arch, frozenset(file.weights)) if self.arch else usual_stages(depth)
        self.failure: Exception | None = None
        self.reads_packed = False  # whether a product reads weights that are not float32
        self._made: dict[str, Floats32] = {}    # of a tensor, what its last node made
        self._shown: dict[Place, Floats32] = {}  # of a place, what a node of its name made, or what a product read
        self._weights: dict[int, Floats32] = {}  # of a layer, the chosen experts' weights [T, K]
        self._chosen: dict[int, np.ndarray] = {}  # of a layer, the chosen experts [T, K], the best first
        self._layer = -1
        self._ggml = _open_ggml(libraries)
        self._checked = False

    def __call__(self, address: int, ask: bool, data: object) -> bool:
        """Answer ggml: whether the node is wanted (ask), or take it and go on. An error ends the run, and is kept."""
        try:
            part = self._part(address)
            if not ask and part is not None:
                self._take(address, part)
            return part is not None or not ask
        except Exception as error:  # noqa: BLE001 (C calls this: an exception cannot pass)
            self.failure = self.failure or error
            return False

    def version(self) -> str:
        """Version of the ggml library."""
        return str(self._ggml.ggml_version().decode()) if hasattr(self._ggml, "ggml_version") else "unknown"

    def values(self) -> dict[Place, Floats32]:
        """Every stage that was seen: by the tensors that it reads, by its name, or as what a product reads."""
        for layer, weight_TK in self._weights.items():
            e = (self.arch.layers[layer].ffn or UNKNOWN).experts if self.arch else None
            if e is not None and layer in self._chosen and not e.down_scale:
                self._shown[layer, ROUTED] = dense_weights(weight_TK, self._chosen[layer], e.n)
        found = {p: v.reshape(len(v), -1) for p, v in self._shown.items()}
        found = {p: v for p, v in found.items() if self._width(p) in (None, v.shape[1])} | join(
            self.by, self._width, self._made)
        return {p: v for p, v in found.items() if self._is_wanted(p)}

    def _width(self, place: Place) -> int | None:
        """Channels of a place; None where nobody knows."""
        return None if self.arch is None else self.arch.width(*place)

    def _part(self, address: int) -> str | Place | None:
        """What the node is: the tensor that it reads, the place that it is; None where it is not wanted."""
        tensor = _Tensor.from_address(address)
        if not self._checked:
            self._check_layout(address, tensor)
        op = self._ggml.ggml_op_name(tensor.op).decode()
        for source in filter(None, tensor.src[:2]):
            name = self._name(source)
            if op in PRODUCTS and name.endswith(".weight"):
                self.reads_packed |= _Tensor.from_address(source).type != F32
            if name == "token_embd.weight" and op != "GET_ROWS":
                continue  # the head
            if (bare := strip(name)) in self.by.places and bare != name:
                return bare if any(map(self._is_wanted, self.by.places[bare])) else None
        if self._name(address) == SCALED:
            return None, "embedding"
        name, _, layer = self._name(address).rpartition("-")
        if not layer.isdigit() or (self.arch and int(layer) >= self.arch.n_layer):
            return None
        stage = ROUTED if name == WEIGHTED else BY_NODE.get((name, op)) or BY_NODE.get((name, ""))
        if stage is None or not self._is_wanted((int(layer), stage)) or not self._is_plain(int(layer), stage):
            return None
        return int(layer), stage

    def _is_wanted(self, place: Place) -> bool:
        stages = stages_wanted(self.ask, place[0])
        return stages is None or place[1] in stages

    def _is_plain(self, layer: int, stage: str) -> bool:
        """Whether RoPE is the last that is done to a layer's queries or keys; other stages are."""
        a = self.arch.layers[layer].attention if self.arch else None
        later = a is not None and (a.l2 or a.norm_after_rope or (a.temperature is not None and stage == "q_rope"))
        return not later or stage_named(stage).operation != "rope"

    def _take(self, address: int, part: str | Place) -> None:
        tensor = _Tensor.from_address(address)
        if isinstance(part, tuple):
            if part[1] == ROUTED:
                self._weights[part[0] or 0] = self._read(tensor.src[1]).reshape(len(self.ask.tokens), -1)
            else:
                self._shown[part] = self._read(address)
            return
        value, op = self._read(address), self._ggml.ggml_op_name(tensor.op).decode()
        layer = self.by.places[part][0][0] or 0
        if layer > self._layer:
            tell(self.folder, f"layer {layer}")
            self._layer = layer
        if op in PICKED:
            self._chosen[layer] = chosen = self._ids(tensor.src[2])
            value = sort_experts(value.reshape(*chosen.shape, -1), chosen)
        self._made[part] = value
        if (read := self.by.inputs.get(part)) and read not in self._shown and self._is_wanted(read):
            self._take_read(tensor, op, read, layer)

    def _take_read(self, tensor: _Tensor, op: str, place: Place, layer: int) -> None:
        """Take what a product reads, or the norm that a norm's weight is multiplied with."""
        at = tensor.src[1] if op in PRODUCTS else None
        if op == "MUL":
            norm = _Tensor.from_address(tensor.src[0])
            at = norm.src[0] if self._ggml.ggml_op_name(norm.op) in (b"RMS_NORM", b"NORM") else None
            if place[1] != "attn_resid":  # of the others ggml may have put the norm in their place
                at = None
        if not at or _Tensor.from_address(at).type != F32 or not self._ggml.ggml_is_contiguous(at):
            return
        if op == "MUL_MAT_ID":
            chosen = self._chosen[layer]
            if self._ggml.ggml_nelements(at) != chosen.size * _Tensor.from_address(at).ne[0]:
                return
            self._shown[place] = sort_experts(self._read(at).reshape(*chosen.shape, -1), chosen)
        elif self._width(place) in (None, self._ggml.ggml_nelements(at) // len(self.ask.tokens)):
            self._shown[place] = self._read(at)

    def _read(self, address: int) -> Floats32:
        """Copy a node's values [T, ...]."""
        tensor = _Tensor.from_address(address)
        if tensor.type != F32 or not self._ggml.ggml_is_contiguous(address):
            raise FileError(f"llama.cpp computes {self._name(address)} in a form that is not read here "
                            f"(type {tensor.type}).")
        out = np.empty(self._ggml.ggml_nelements(address), np.float32)
        self._ggml.ggml_backend_tensor_get(address, out.ctypes.data, 0, out.nbytes)
        return out.reshape(len(self.ask.tokens), -1)

    def _ids(self, address: int) -> np.ndarray:
        """The ids [T, K] of the chosen experts: the first columns of a wider table."""
        tensor = _Tensor.from_address(address)
        row = (ctypes.c_int32 * tensor.ne[0])
        return np.array([row.from_address(tensor.data + t * tensor.nb[1])[:] for t in range(tensor.ne[1])], np.int64)

    def _name(self, address: int) -> str:
        return str(self._ggml.ggml_get_name(address).decode(errors="replace"))

    def _check_layout(self, address: int, tensor: _Tensor) -> None:
        """Hold the structure to what the library itself says of a tensor; FileError where its layout has changed."""
        known = tensor.name.decode(errors="replace") == self._name(address)
        if not known or int(np.prod(tensor.ne[:])) != self._ggml.ggml_nelements(address):
            raise FileError("this llama-cpp-python lays out its tensors in a way not known here. Install version 0.3.")
        self._checked = True


def _arch(file: ModelFile) -> Arch | None:
    """The architecture, where this build knows it."""
    try:
        return read_arch(file)
    except ArchError:
        return None


def _open_ggml(libraries: Path) -> ctypes.CDLL:
    names = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
    path = next((libraries / n for n in names if (libraries / n).exists()), None)
    if path is None:
        raise FileError(f"llama-cpp-python has no ggml library in {libraries.name}; {names[0]} is needed. "
                        "Install version 0.3.")
    ggml = ctypes.CDLL(str(path))
    ggml.ggml_get_name.restype = ggml.ggml_op_name.restype = ctypes.c_char_p
    ggml.ggml_get_name.argtypes = ggml.ggml_nelements.argtypes = ggml.ggml_is_contiguous.argtypes = [ctypes.c_void_p]
    ggml.ggml_op_name.argtypes = [ctypes.c_int]
    ggml.ggml_nelements.restype, ggml.ggml_is_contiguous.restype = ctypes.c_int64, ctypes.c_bool
    ggml.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t]
    ggml.ggml_backend_tensor_get.restype = None
    if hasattr(ggml, "ggml_version"):
        ggml.ggml_version.restype = ctypes.c_char_p
    return ggml


def _meta(api: Any, model: Any, key: str) -> str:  # noqa: ANN401
    buffer = ctypes.create_string_buffer(128)
    return buffer.value.decode() if api.llama_model_meta_val_str(model, key.encode(), buffer, 128) >= 0 else "unknown"


def _log_words(folder: Path) -> str:
    """The last line of llama.cpp's own log that names an error."""
    lines = reversed(last_lines(folder / LOG))
    return next((line.strip() for line in lines if "error" in line.lower()), "it does not say why")


def _threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
