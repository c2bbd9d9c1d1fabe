"""Run llama.cpp and transformers by themselves, with a fault where asked, and write what their own tools would write.

llama.cpp goes through its Python binding with an eval callback that prints as llama-eval-callback does: settings, batch
and format are that tool's. transformers runs with README's hooks, or under its model_addition_debugger. Nothing of the
project's own engines is used but the layout of a ggml tensor.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.model.stages import Place
from core.sources.engines.llama_cpp import _open_ggml, _Tensor

Fault = Callable[[np.ndarray], np.ndarray]  # of a value [.., T, W]
SHOWN = 3  # numbers at either end of a row, and rows at either end
DTYPES = {0: np.float32, 1: np.float16, 26: np.int32, 27: np.int64}  # of ggml's types, those that the tool prints
README = Path(__file__).parents[2] / "README.md"
MODULES = {  # a stage -> the module whose output it is
    "attn_norm": "input_layernorm", "qkv": "self_attn.q_proj", "attn_out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_silu": "mlp.act_fn", "ffn_out": "mlp.down_proj",
}
WHOLE = {"embedding": "model.embed_tokens", "final_norm": "model.norm", "logits": "lm_head"}
AGAIN = ("RESHAPE", "VIEW", "PERMUTE", "ROPE")  # nodes that carry on a name
NODES = {"attn_norm": "attn_norm-{}", "qkv": "Qcur-{}", "attn_out": "attn_out-{}", "ffn_norm": "ffn_norm-{}",
         "ffn_gate": "ffn_gate-{}", "ffn_up": "ffn_up-{}", "ffn_swigl": "ffn_swiglu-{}", "ffn_out": "ffn_out-{}",
         "attn_resid": "ffn_inp-{}", "output": "l_out-{}"}


class LlamaCpp:
    """A model in llama.cpp. run: one prompt, logged node by node as llama-eval-callback logs it."""

    def __init__(self, path: Path) -> None:
        import llama_cpp
        from llama_cpp import llama_cpp as api

        self.api, self.ggml = api, _open_ggml(Path(llama_cpp.__file__).parent / "lib")
        self.ggml.ggml_type_name.restype = self.ggml.ggml_op_desc.restype = ctypes.c_char_p
        self.ggml.ggml_op_desc.argtypes = [ctypes.c_void_p]
        api.llama_backend_init()
        options = api.llama_model_default_params()
        options.n_gpu_layers = 0
        self.model = api.llama_model_load_from_file(str(path).encode(), options)
        assert self.model, f"llama.cpp does not load {path}"

    def run(self, tokens: Sequence[int], node: str = "", fault: Fault | None = None, *, every: bool = False) -> str:
        """Run one batch and return the log; of the node of that name the values are changed before they are used.

        every: put out the logits of every token, as llama-imatrix does; llama-eval-callback takes the last one's.
        """
        api, lines = self.api, [f"number of input tokens = {len(tokens)}", *(f"  {token}" for token in tokens)]
        self.squares: dict[str, tuple[np.ndarray, int]] = {}

        def callback(address: int, ask: bool, data: object) -> bool:
            if not ask:
                if fault is not None and self._name(address) == node and self._op(address) not in AGAIN:
                    x = self._view(address)
                    x[...] = fault(x)
                lines.extend(self._printed(address))
                self._collect(address)
            return True

        options = api.llama_context_default_params()
        options.n_ctx = options.n_batch = 512
        options.n_threads = options.n_threads_batch = 1
        kept = api.ggml_backend_sched_eval_callback(callback)
        options.cb_eval = kept
        context = api.llama_init_from_model(self.model, options)
        ids = (ctypes.c_int32 * len(tokens))(*tokens)
        batch = api.llama_batch_get_one(ids, len(tokens))
        wanted = (ctypes.c_int8 * len(tokens))(*([1] * len(tokens)))
        if every:
            batch.logits = wanted
        assert api.llama_decode(context, batch) == 0
        api.llama_free(context)
        return "\n".join(lines) + "\n"

    def _name(self, address: int) -> str:
        return str(self.ggml.ggml_get_name(address).decode(errors="replace"))

    def _op(self, address: int) -> str:
        return str(self.ggml.ggml_op_name(_Tensor.from_address(address).op).decode())

    def _view(self, address: int) -> np.ndarray:
        """The node's own memory, [ne3, ne2, ne1, ne0] by its strides."""
        tensor = _Tensor.from_address(address)
        kind = np.dtype(DTYPES[tensor.type])
        span = sum((n - 1) * b for n, b in zip(tensor.ne, tensor.nb, strict=True)) + kind.itemsize
        memory = (ctypes.c_char * span).from_address(tensor.data)
        return np.ndarray(tensor.ne[::-1], kind, memory, 0, tensor.nb[::-1])

    def _printed(self, address: int) -> list[str]:
        tensor = _Tensor.from_address(address)
        sources = ["" if not s else f"{self._name(s)}{{{self._shape(_Tensor.from_address(s))}}}"[:127]
                   for s in tensor.src[:2]]
        kind = self.ggml.ggml_type_name(tensor.type).decode()
        op = self.ggml.ggml_op_desc(address).decode()
        head = (f"common_debug_cb_eval: {self._name(address):>24} = ({kind}) {op:>10}({sources[0]}, {sources[1]}}}) = "
                f"{{{self._shape(tensor)}}}")
        if tensor.type not in DTYPES:
            return [head]
        x, lines = self._view(address), [head]
        total = float(np.float32(x.astype(np.float32).ravel().cumsum(dtype=np.float32)[-1]))  # one by one, in float32
        for block in x:
            lines.append("    [")
            for plane in ends(list(block), "        ..., "):
                lines += [plane] if isinstance(plane, str) else ["        [", *(
                    row if isinstance(row, str) else f"            [{numbers(row)}  ],"
                    for row in ends(list(plane), "            ..., ")), "        ],"]
            lines += ["    ]", f"    sum = {total:f}"]
        return lines

    def _collect(self, address: int) -> None:
        """Sums of squares of what goes into each product, as llama-imatrix takes them."""
        tensor = _Tensor.from_address(address)
        if self._op(address) == "MUL_MAT" and self._name(tensor.src[0]).endswith(".weight"):
            x = self._view(tensor.src[1]).reshape(-1, _Tensor.from_address(tensor.src[1]).ne[0]).astype(np.float64)
            self.squares[self._name(tensor.src[0])] = np.square(x).sum(0).astype(np.float32), len(x)

    @staticmethod
    def _shape(tensor: _Tensor) -> str:
        return ", ".join(map(str, tensor.ne))


def ends(items: list[Any], gap: str) -> list[Any]:
    """The items at either end with a gap between, as the tool shows many."""
    return [*items[:SHOWN], gap, *items[-SHOWN:]] if len(items) > 2 * SHOWN else items


def numbers(row: np.ndarray) -> str:
    """A row as the tool prints it."""
    return ", ".join(x if isinstance(x, str) else f"{float(x):12.4f}" for x in ends(list(row), "   ..."))


def write_imatrix(path: Path, squares: dict[str, tuple[np.ndarray, int]]) -> Path:
    """As llama-imatrix writes what it has collected."""
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), "", use_temp_file=False)
    writer.add_string("general.type", "imatrix")
    writer.add_array("imatrix.datasets", ["prompt"])
    writer.add_uint32("imatrix.chunk_count", 1)
    writer.add_uint32("imatrix.chunk_size", 512)
    for name, (sums, n) in squares.items():
        writer.add_tensor(f"{name}.in_sum2", sums.reshape(1, -1))
        writer.add_tensor(f"{name}.counts", np.asarray([[float(n)]], np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def load_transformers(path: Path) -> Any:
    """The same file in transformers, in float32."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype="float32",
                                                attn_implementation="eager", local_files_only=True).eval()


def with_fault(model: Any, place: Place, fault: Fault) -> Callable[[], None]:
    """Change what the module of a place puts out, inside its own forward; returns what takes it away again."""
    import torch

    layer, stage = place
    name = WHOLE[stage] if layer is None else f"model.layers.{layer}" + (
        "" if stage == "output" else f".{MODULES[stage]}")
    module = model.get_submodule(name)
    right = module.forward

    def wrong(*args: Any, **more: Any) -> Any:
        out = right(*args, **more)
        x = out[0] if isinstance(out, tuple) else out
        changed = torch.from_numpy(np.ascontiguousarray(fault(x.detach().numpy())))
        return (changed, *out[1:]) if isinstance(out, tuple) else changed

    module.forward = wrong
    return lambda: setattr(module, "forward", right)


def hook_recipe() -> str:
    """README's recipe, as it stands there."""
    return next(code for code in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
                if "register_forward_hook" in code)


def run_recipe(model: Any, ids: Sequence[int], folder: Path) -> Path:
    """Run README's recipe in a folder; the hooks are taken away again."""
    import os

    here = os.getcwd()
    os.chdir(folder)
    try:
        exec(compile(hook_recipe(), "README.md", "exec"), {"model": model, "ids": list(ids)})
    finally:
        os.chdir(here)
        for module in model.modules():
            module._forward_hooks.clear()
    return folder / "dump.npz"


def run_debugger(model: Any, ids: Sequence[int], folder: Path, *, use_repr: bool) -> Path:
    """Run under transformers' own debugger, which writes into the folder."""
    import torch
    from transformers.model_debugging_utils import model_addition_debugger_context

    with torch.no_grad(), model_addition_debugger_context(model, str(folder), do_prune_layers=False,
                                                          use_repr=use_repr):
        model(input_ids=torch.tensor([list(ids)]), use_cache=False)
    return folder
