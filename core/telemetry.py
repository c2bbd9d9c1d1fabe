"""Say what GPUs this machine has, through NVML and without torch. No GPU is a reason, not an error."""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import DeviceError, UsageError

DEVICE = re.compile(r"^(cpu|cuda(:([0-9]|1[0-5]))?|auto)$")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as NVML sees it."""

    index: int
    name: str
    memory_mib: int


def find_gpus() -> tuple[tuple[Gpu, ...], str]:
    """List the GPUs, and why there is none where there is none."""
    try:
        import pynvml
    except ImportError:
        return (), "nvidia-ml-py is not installed"
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"no CUDA driver ({error})"
    try:
        gpus = []
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            gpus.append(Gpu(i, str(pynvml.nvmlDeviceGetName(handle)), pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20))
        return tuple(gpus), "" if gpus else "the driver shows no GPU"
    except pynvml.NVMLError as error:
        return (), f"NVML failed ({error})"
    finally:
        pynvml.nvmlShutdown()


def choose_device(wanted: str) -> tuple[str, str]:
    """Return the device to run on and why: UsageError for a spelling, DeviceError for an explicit device that is absent."""
    if not DEVICE.match(wanted):
        raise UsageError(f"{wanted!r} is not a device. Write auto, cpu, cuda or cuda:N (N from 0 to 15).")
    if wanted == "cpu":
        return "cpu", "asked for"
    gpus, why_not = find_gpus()
    index = int(wanted.partition(":")[2] or 0)
    if wanted == "auto":
        return ("cuda:0", f"{gpus[0].name} is there") if gpus else ("cpu", why_not)
    if index >= len(gpus):
        found = f"this machine has {len(gpus)} GPU(s)" if gpus else why_not
        raise DeviceError(f"--device {wanted}: {found}. Use --device cpu, or auto to take what there is.")
    return f"cuda:{index}", "asked for"
