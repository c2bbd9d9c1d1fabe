"""A pretend GPU: tensors that say cuda:0, lie on the CPU, and refuse to meet those that do not say it.

It shows what a machine without a GPU hides: tensors of two devices in one operation, waits for the device, what a graph
must not do while it is captured. Triton's kernels are interpreted. Not here: a GPU's speed, memory, races and rounding.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch._dynamo  # by itself it would come later, and take stock of torch.cuda then
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map, tree_map_only
from triton.runtime import interpreter

CARD, CPU = torch.device("cuda:0"), torch.device("cpu")
MEMORY = 64 << 30
COPIES = ("aten::copy_", "aten::_to_copy", "aten::to")
INDEXING = ("aten::index", "aten::index_put_", "aten::_index_put_impl_")  # indices may come from the host
WAITING = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero", "aten::masked_select",
           "aten::equal", "aten::_unique2")
ON_HOST = ("aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::equal")  # what they give is a number
HOST_NUMBERS = ("aten::new_tensor", "aten::lift_fresh")
COUNTS: Counter[str] = Counter()  # waits, to_card, launches, replays, statistics (waits for a batch of them)
CAPTURED: list[Graph] = []  # the graph that is being captured


class CardTensor(torch.Tensor):
    """A tensor on the card; inner holds its values."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor, requires_grad: bool = False) -> CardTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=CARD, requires_grad=requires_grad)
        made.inner = inner
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})

    def __getitem__(self, at: Any) -> torch.Tensor:
        return super().__getitem__(torch.tensor(at).to(CARD) if isinstance(at, list) else at)

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        copy = CardTensor(self.inner.detach().clone(), self.requires_grad)
        copy._is_param = isinstance(self, torch.nn.Parameter)
        return memo.setdefault(id(self), copy)

    def __repr__(self) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype})"

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        wait("tolist")
        return self.detach().inner.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


class Here(TorchDispatchMode):
    """Send also what has no tensor yet, such as torch.empty, through operate."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return operate(func, args, kwargs or {})


def inner(x: Any) -> Any:
    return x.inner if isinstance(x, CardTensor) else x


def wait(what: str) -> None:
    """Count a wait of the host for the card; none may be while a graph is captured."""
    assert not CAPTURED, f"{what} while a graph is captured"
    COUNTS["waits"] += 1


def operate(func: Any, args: Any, kwargs: Any) -> Any:
    """Run one operation on the values inside, held to what a card allows."""
    name, tensors, devices = func._schema.name, list[torch.Tensor](), list[torch.device]()
    tree_map_only(torch.Tensor, tensors.append, (args, kwargs))
    tree_map_only(torch.device, devices.append, (args, kwargs))
    ours = [t for t in tensors if isinstance(t, CardTensor)]
    on_card = devices[0].type == "cuda" if devices else bool(ours) and name not in ON_HOST
    if name == "aten::copy_":
        on_card = isinstance(args[0], CardTensor)
    hold(name, args, tensors, ours, on_card)
    args, kwargs = tree_map(lambda x: CPU if isinstance(x, torch.device) else x, (args, kwargs))
    kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
    plain, named = tree_map(inner, (args, kwargs))
    kept = [(t, t.clone()) for t in written(func, plain, named)] if CAPTURED else []
    out = func(*plain, **named)
    for tensor, old in kept:  # a captured operation has not run yet
        tensor.copy_(old)
    if name == "aten::to" and out is plain[0]:
        return args[0] if isinstance(args[0], CardTensor) == on_card else CardTensor(out.clone()) if on_card else out
    same = {id(inner(t)): t for t in tensors}
    result = tree_map_only(torch.Tensor, lambda t: same.get(id(t)) if id(t) in same else CardTensor(t), out) \
        if on_card else out
    if CAPTURED:
        CAPTURED[-1].calls.append((func, args, kwargs, result))
    return result


def hold(name: str, args: Any, tensors: list[torch.Tensor], ours: list[Any], on_card: bool) -> None:
    """Raise for what a card refuses; count what it has to wait for."""
    foreign = [t for t in tensors if not isinstance(t, CardTensor) and t.dim()]
    if ours and foreign and name not in (*COPIES, *INDEXING, "aten::set_"):
        raise RuntimeError(f"{name}: tensors on cuda:0 and on cpu, {[tuple(t.shape) for t in tensors]}")
    if ours and (name in WAITING or (foreign and name in INDEXING)):
        wait(name)
    if name in COPIES:
        source = args[1] if name == "aten::copy_" else args[0]
        if isinstance(source, CardTensor) and not on_card and not (name == "aten::copy_" and args[2:] == (True,)):
            wait(name)
        elif not isinstance(source, CardTensor) and on_card and source.dim():
            assert not CAPTURED, f"{name} from the host while a graph is captured"
            COUNTS["to_card"] += 1
    assert not (ours and name in HOST_NUMBERS), f"{name}: a number of the host goes to the card"


def written(func: Any, args: Any, kwargs: Any) -> Iterator[torch.Tensor]:
    """The tensors that an operation writes in place."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[i] if i < len(args) else kwargs.get(argument.name)
            yield from value if isinstance(value, list | tuple) else [value]


class Graph:
    """A captured graph: the calls, made again on the same tensors."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def replay(self) -> None:
        COUNTS["replays"] += 1
        with torch.inference_mode():
            for func, args, kwargs, result in self.calls:
                plain, named = tree_map(inner, (args, kwargs))
                self._put(result, func(*plain, **named))

    def _put(self, into: Any, value: Any) -> None:
        if isinstance(into, list | tuple):
            for a, b in zip(into, value, strict=True):
                self._put(a, b)
        elif isinstance(into, CardTensor) and into.inner.data_ptr() != value.data_ptr():
            into.inner.copy_(value)


@contextlib.contextmanager
def capture(graph: Graph, **options: Any) -> Iterator[None]:
    CAPTURED.append(graph)
    try:
        yield
    finally:
        CAPTURED.pop()


class Stream:
    """A stream or an event: everything before it is done at once, but nothing says so before it is waited for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.cuda_stream = 0

    def query(self) -> bool:
        return False

    def synchronize(self) -> None:
        COUNTS["statistics"] += 1

    def record(self, *args: Any) -> None:
        pass

    wait_stream = wait_event = record


def install() -> None:
    """Put the card in the place of torch.cuda, of Triton's launches and of the driver's list."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    name, nothing = "Pretend H200", lambda *args, **kwargs: None
    properties = SimpleNamespace(total_memory=MEMORY, name=name, uuid="0", L2_cache_size=1 << 20)
    cuda: dict[str, Any] = {
        "_lazy_init": nothing, "set_device": nothing, "manual_seed_all": nothing, "empty_cache": nothing,
        "synchronize": lambda *args: wait("synchronize"), "is_available": lambda: True, "is_initialized": lambda: True,
        "device_count": lambda: 1, "current_device": lambda: 0, "get_device_name": lambda *args: name,
        "get_device_capability": lambda *args: (9, 0), "get_device_properties": lambda *args: properties,
        "mem_get_info": lambda *args: (MEMORY, MEMORY), "memory_allocated": lambda *args: 0,
        "memory_reserved": lambda *args: 0, "is_bf16_supported": lambda *args: True,
        "device": contextlib.nullcontext, "stream": contextlib.nullcontext, "current_stream": Stream,
        "Stream": Stream, "Event": Stream, "CUDAGraph": Graph, "graph": capture}
    for key, value in cuda.items():
        setattr(torch.cuda, key, value)
    tensor, run = torch.tensor, threading.Thread.run

    def made(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return tensor(data, *args, **kwargs).to(device or CPU)

    def run_there(thread: threading.Thread) -> None:
        with Here():
            run(thread)

    torch.tensor, threading.Thread.run = made, run_there
    interpreter.GridExecutor.__call__ = launch
    from core.kernels.gpu import products as gpu_products
    from core.system import gpus

    gpu_products.tiling = lambda rows, n_group, tokens: gpu_products.Tiling(128, 16, 1)  # few, as each is slow
    gpus.find_gpus = lambda: ((gpus.Gpu(0, name, MEMORY >> 20),), "")


def launch(executor: Any, *args: Any, interpret: Any = interpreter.GridExecutor.__call__, **kwargs: Any) -> None:
    """Launch a kernel: interpret it, or remember it where a graph is captured."""
    given = [t for t in (*args, *kwargs.values()) if isinstance(t, torch.Tensor)]
    assert all(isinstance(t, CardTensor) for t in given), f"{executor.fn.__name__} is given a tensor of the host"
    COUNTS["launches"] += 1

    def work(*plain: Any, **named: Any) -> None:
        with _disable_current_modes():
            interpret(executor, *plain, **named)

    if CAPTURED:
        CAPTURED[-1].calls.append((work, args, kwargs, None))
    else:
        plain, named = tree_map(inner, (args, kwargs))
        work(*plain, **named)
