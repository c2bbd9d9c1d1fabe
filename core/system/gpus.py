"""Say what GPUs this machine has, through NVML and without torch. No GPU is a reason, not an error."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from core.system.child import run_program
from core.system.errors import DeviceError, UsageError

SMI_S = 5.0  # a driver that keeps no GPU awake takes seconds; where there is none, the command is absent at once
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
        return ask_nvidia_smi("nvidia-ml-py is not installed")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return (), f"no CUDA driver ({error})"
    try:
        gpus = []
        for i in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            memory_mib = pynvml.nvmlDeviceGetMemoryInfo(handle).total >> 20
            gpus.append(Gpu(i, str(pynvml.nvmlDeviceGetName(handle)), memory_mib))
        return tuple(gpus), "" if gpus else "the driver shows no GPU"
    except pynvml.NVMLError as error:
        return (), f"NVML failed ({error})"
    finally:
        pynvml.nvmlShutdown()


def ask_nvidia_smi(why_not: str) -> tuple[tuple[Gpu, ...], str]:
    """List the GPUs by the driver's own command, where NVML cannot be asked; why_not is kept where it fails too."""
    fields = "--query-gpu=index,name,memory.total"
    try:
        ran = run_program(("nvidia-smi", fields, "--format=csv,noheader,nounits"), SMI_S)
        ran.check_returncode()
        rows = [line.rsplit(",", 1) for line in ran.stdout.splitlines() if line.strip()]
        gpus = tuple(Gpu(int(head.partition(",")[0]), head.partition(",")[2].strip(), int(mib)) for head, mib in rows)
    except (OSError, subprocess.SubprocessError, ValueError):
        return (), f"{why_not}, and nvidia-smi lists no GPU"
    return gpus, "" if gpus else "nvidia-smi lists no GPU"


def choose_device(wanted: str) -> tuple[str, str]:
    """Return the device to run on and why: UsageError for a spelling, DeviceError for an explicit device not there."""
    if not DEVICE.fullmatch(wanted):
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


@dataclass(frozen=True, slots=True)
class GpuSample:
    """What NVML said at one moment; None where this GPU or driver does not say it. own_mib: memory of this process.

    at: seconds of the monotonic clock. n_listed: processes that NVML lists on the GPU, None where it lists nothing.
    """

    at: float
    util_pct: float | None
    memory_mib: float | None
    power_w: float | None
    sm_mhz: float | None
    memory_mhz: float | None
    temperature_c: float | None
    own_mib: float | None
    n_listed: int | None


class GpuSampler:
    """Sample one GPU from a thread of its own, twice a second; a figure's age is the reader's to tell."""

    def __init__(self, index: int, uuid: str | None = None, period_s: float = 0.5) -> None:
        self.latest: GpuSample | None = None
        self.first_own: GpuSample | None = None  # the first one that saw this process hold memory
        self.why_not = ""
        self._index, self._uuid, self._period_s = index, uuid, period_s
        self._end, self._began = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu-sampler", daemon=True)

    def start(self) -> None:
        """Begin, and wait for the first sample; where NVML cannot be used, latest stays None and why_not says so."""
        self._thread.start()
        self._began.wait(2.0)

    def stop(self) -> None:
        """End the thread and wait for it."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join(2.0)

    def _run(self) -> None:
        try:
            self._sample()
        finally:
            self._began.set()

    def _sample(self) -> None:
        try:
            import pynvml
        except ImportError:
            self.why_not = "nvidia-ml-py is not installed"
            return
        try:
            pynvml.nvmlInit()
            handle = self._handle(pynvml)
        except pynvml.NVMLError as error:
            self.why_not = f"no NVML ({error})"
            return
        while not self._end.is_set():
            self.latest = sample = sample_gpu(pynvml, handle)
            if self.first_own is None and sample.own_mib:
                self.first_own = sample
            self._began.set()
            self._end.wait(self._period_s)
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _handle(self, nvml: Any) -> Any:  # noqa: ANN401 (nvidia-ml-py has no types)
        """The GPU by its UUID, for CUDA_VISIBLE_DEVICES renumbers; by its index where the UUID is not known to NVML."""
        if self._uuid:
            with contextlib.suppress(nvml.NVMLError):
                return nvml.nvmlDeviceGetHandleByUUID(self._uuid)
        return nvml.nvmlDeviceGetHandleByIndex(self._index)


def sample_gpu(nvml: Any, handle: Any) -> GpuSample:  # noqa: ANN401 (nvidia-ml-py has no types)
    """Ask NVML once; a question that it refuses gives None."""
    def ask(question: Callable[..., Any], *more: object) -> Any:  # noqa: ANN401
        try:
            return question(handle, *more)
        except nvml.NVMLError:
            return None

    util, memory, power = (ask(q) for q in (nvml.nvmlDeviceGetUtilizationRates, nvml.nvmlDeviceGetMemoryInfo,
                                            nvml.nvmlDeviceGetPowerUsage))
    listed = ask(nvml.nvmlDeviceGetComputeRunningProcesses)
    own = [p.usedGpuMemory for p in listed or () if p.pid == os.getpid()]
    clocks = [ask(nvml.nvmlDeviceGetClockInfo, kind) for kind in (nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM)]
    return GpuSample(
        time.monotonic(), None if util is None else float(util.gpu), None if memory is None else memory.used / 2**20,
        None if power is None else power / 1000, clocks[0], clocks[1],
        ask(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU),
        own[0] / 2**20 if own and own[0] is not None else None, None if listed is None else len(listed))
