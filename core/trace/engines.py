"""The other engines that a source may name, a row each. Nothing is run here.

It lies below core.sources, whose files do the running, because the spelling of a source needs the names; and it imports
nothing heavy, because a command line is read before anything heavy is.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from core.system.child import child_command

HALF_CACHE = "KV cache float16"  # said in a kernel's words: keys and values are rounded so before they are used
GELU_TABLE = "GELU by a float16 table"  # said in a kernel's words: a choice, by which its values are judged


@dataclass(frozen=True, slots=True)
class Engine:
    """Another engine, SCHEME:FILE in a source.

    module: has capture(ask, folder) -> (answer, values); a child process imports it. packages: what must be importable.
    needs: what pip is to install, as pyproject.toml has it. folders: it reads safetensors folders too, not GGUF alone.
    devices: it runs on any device that is asked for, not on the CPU alone. command: starts a child; the scheme and the
    child's folder follow.
    """

    scheme: str
    module: str
    packages: tuple[str, ...]
    needs: tuple[str, ...]
    folders: bool = False
    devices: bool = False
    command: tuple[str, ...] = child_command("core.sources.engines.child")

    @property
    def install(self) -> str:
        """The command that installs what it needs, into the Python that runs this."""
        return f"{sys.executable} -m pip install {' '.join(map(repr, self.needs))}"


ENGINES = {engine.scheme: engine for engine in (
    Engine("llama.cpp", "core.sources.engines.llama_cpp", ("llama_cpp",),
           ("llama-cpp-python>=0.3.30,<0.4",)),
    Engine("transformers", "core.sources.engines.hf_transformers",
           ("transformers", "accelerate"),  # GGUF needs accelerate
           ("transformers>=5,<6", "accelerate>=1,<2"), folders=True, devices=True),
)}
