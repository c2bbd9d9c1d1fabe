"""The other engines that a source may name, a row each. Nothing is run here.

It lies below core.sources, whose files do the running, because the spelling of a source needs the names; and it imports
nothing heavy, because a command line is read before anything heavy is.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.system.child import child_command

GELU_TABLE = "GELU by a float16 table"  # said in a kernel's words: a choice, by which its values are judged


@dataclass(frozen=True, slots=True)
class Engine:
    """Another engine, SCHEME:FILE in a source.

    module: has capture(ask, folder) -> (answer, values); a child process imports it. packages: what must be importable.
    extra: of this project, pip install 'apr-tui[EXTRA]'. folders: it reads safetensors folders too, not GGUF alone.
    devices: it runs on any device that is asked for, not on the CPU alone. command: starts a child; the scheme and the
    child's folder follow.
    """

    scheme: str
    module: str
    packages: tuple[str, ...]
    extra: str
    folders: bool = False
    devices: bool = False
    command: tuple[str, ...] = child_command("core.sources.engines.child")


ENGINES = {engine.scheme: engine for engine in (
    Engine("llama.cpp", "core.sources.engines.llama_cpp", ("llama_cpp",), "llama"),
    Engine("transformers", "core.sources.engines.hf_transformers",
           ("transformers", "accelerate"), "transformers", folders=True, devices=True),  # GGUF needs accelerate
)}
