"""Run a command on a pretend GPU (pretend_device.py), built into torch before it is imported.

python -m tests.support.pretend_card apr-tui trace MODEL --device cuda ...      or pytest ARGUMENTS, or -c CODE
What was counted goes to stderr as one line of JSON. It needs a C++ compiler.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path


def load_hooks() -> None:
    """Build and load what torch asks of a device; before torch is imported, for it asks once."""
    found = find_spec("torch")
    assert found and found.origin and "torch" not in sys.modules
    torch_folder = Path(found.origin).parent
    with tempfile.TemporaryDirectory() as folder:
        built, lib = Path(folder) / "hooks.so", torch_folder / "lib"
        subprocess.run(
            ["c++", "-O0", "-std=c++20", "-shared", "-fPIC", Path(__file__).with_suffix(".cpp"), "-o", built,
             f"-I{torch_folder / 'include'}", f"-L{lib}", f"-Wl,-rpath,{lib}", "-Wl,--no-as-needed", "-lc10",
             "-ltorch_cpu"], check=True)
        ctypes.CDLL(str(built))


def main(words: list[str]) -> int:
    os.environ["TRITON_INTERPRET"] = "1"
    load_hooks()
    from tests.support import pretend_device

    pretend_device.install()
    with pretend_device.Here():
        if words[0] == "-c":
            exec(words[1], {"__name__": "__main__"})
            code = 0
        elif words[0] == "pytest":
            import pytest

            code = int(pytest.main(words[1:]))
        else:
            from apr_tui.cli.main import main as command

            code = command(words[1:])
    print(json.dumps(pretend_device.COUNTS), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
