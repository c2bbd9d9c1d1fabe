"""Render a file's chat template in a process of its own, with little time and memory. The process: chat_sandbox."""

from __future__ import annotations

from core.system.child import ask_child, take_answer
from core.system.errors import FileError
from core.text import chat_sandbox

WALL_SECONDS = 20.0  # for a machine so busy that the process's own limit of CPU time is not reached


def render_chat_template(template: str, text: str, bos: str, eos: str) -> str:
    """Render a conversation of one user message, up to where the assistant speaks. FileError says why it cannot be."""
    asked = {"template": template, "text": text, "bos_token": bos, "eos_token": eos}
    try:
        answer = take_answer(ask_child("core.text.chat_sandbox", asked), WALL_SECONDS)
    except TimeoutError:
        answer = {"error": f"it ran for more than {WALL_SECONDS:.0f} s"}
    except (OSError, ValueError):
        limits = f"{chat_sandbox.CPU_SECONDS} s or {chat_sandbox.MEMORY_BYTES >> 20} MiB"
        answer = {"error": f"it used more than {limits}, or its process could not start"}
    if "error" not in answer:
        return str(answer["text"])
    raise FileError(
        f"The file's chat template could not be rendered: {answer['error']}. "
        "Leave --chat out, and write the prompt as the model expects it."
    )
