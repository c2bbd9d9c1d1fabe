"""Say whether a GPU takes work, and tell its failure in mid-run from a mistake of ours. It chooses no device."""

from __future__ import annotations

import re
import sys

from core.system.errors import DeviceError, os_reason

LIBRARY = re.compile(r"\blib(cuda|cudart|cublas|cudnn|cupti|nccl|nvrtc|nvidia|nvJitLink)")  # of the driver or of CUDA
SPEAKERS = ("CUDA", "Triton Error", "NCCL")  # so begin the plain RuntimeErrors of a device


def why_unusable(device: str) -> str | None:
    """Say why torch cannot compute on a device that the driver shows; None where it can."""
    if not device.startswith("cuda"):
        return None
    import torch

    if not torch.cuda.is_available():
        return f"this torch ({torch.__version__}) is built without CUDA or cannot start it: install a CUDA build of it"
    try:
        torch.zeros(1, device=device).item()
    except RuntimeError as error:  # another process holds the card, its memory is full, the index is hidden
        return f"it takes no work ({first_line(error)})"
    return None


def place_on_device(asked: str, device: str, reason: str) -> tuple[str, str]:
    """Return the device that was chosen and why: the CPU where auto chose one that takes no work."""
    why_not = why_unusable(device) if asked == "auto" else None
    return (device, reason) if why_not is None else ("cpu", f"{reason}, but {why_not}")


def device_error(error: BaseException, instead: str = "Use --device cpu.") -> DeviceError | None:
    """Say in a user's words what failed and what to do instead; None where it was not the device."""
    if isinstance(error, OSError) and LIBRARY.search(str(error)):
        return DeviceError(f"the device failed: {os_reason(error)}. {instead}")
    torch = sys.modules.get("torch")  # where it is not loaded, no device has failed
    if torch is None or not isinstance(error, RuntimeError):
        return None
    said = first_line(error)
    if isinstance(error, torch.OutOfMemoryError):
        return DeviceError(f"the device is out of memory: {said} Use --device cpu, or a shorter prompt.")
    if isinstance(error, torch.AcceleratorError) or said.startswith(SPEAKERS):
        return DeviceError(f"the device failed: {said.removesuffix('.')}. {instead}")
    return None


def first_line(error: BaseException) -> str:
    """The first line that an error says; its kind where it says none."""
    return next((line for line in str(error).splitlines() if line), type(error).__name__)
