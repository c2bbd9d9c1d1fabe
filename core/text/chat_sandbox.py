"""Render one chat template under limits: the whole program of a child process. chat_template.py asks it.

A template comes from a stranger. jinja2's immutable sandbox keeps it from reaching Python, but not from looping for
ever or from making a terabyte of text; the limits of the process do. It has no clock: the same prompt, the same text.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from core.system.child import answer

CPU_SECONDS = 2
MEMORY_BYTES = 512 << 20
LONGEST = 1 << 20  # characters of a rendered prompt


def render(template: str, text: str, bos_token: str, eos_token: str) -> str:
    """Render with the settings that templates are written for (transformers')."""
    from jinja2 import TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None) -> str:  # noqa: ANN401 (a template's value)
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"],
    )
    environment.filters["tojson"] = to_json
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render(
        messages=[{"role": "user", "content": text}], add_generation_prompt=True, tools=None, documents=None,
        bos_token=bos_token, eos_token=eos_token,
    )


def _limit() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))


def _reply(asked: Mapping[str, str]) -> dict[str, str]:
    try:
        text = render(**asked)
        text.encode()
    except Exception as error:  # noqa: BLE001 (whatever the template raises is the answer)
        said = " ".join(str(error).split())[:200]
        return {"error": f"{type(error).__name__}: {ascii(said)[1:-1]}"}
    return {"text": text} if len(text) <= LONGEST else {"error": f"it wrote {len(text)} characters, over {LONGEST}"}


if __name__ == "__main__":
    _limit()
    answer(_reply)
