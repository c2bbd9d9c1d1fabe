"""A fake engine: a small child that answers from a prepared folder, or fails in the ways that engines fail. No torch.

Started as: python fake_engine.py MODE PREPARED SCHEME FOLDER.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from pathlib import Path

mode, prepared, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[4])
(prepared / "child.pid").write_text(str(os.getpid()))
print("loading", file=sys.stderr)
with (folder / "progress.txt").open("a") as file:
    file.write("loading the model\n")
if mode == "crash":
    print("ggml.c:42: tensor \x1b[31mtoo\x1b[0m large", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGSEGV)
if mode == "fail":
    print("out of luck", file=sys.stderr, flush=True)
    sys.exit(5)
if mode == "slow":
    words = "模型 читается\n".encode()  # in two writes, cut inside a character
    for part in (words[:4], words[4:], b"layer 1\n", b"layer 2\n"):
        time.sleep(0.2)
        with (folder / "progress.txt").open("ab") as file:
            file.write(part)
    time.sleep(60)
if mode == "hang":
    time.sleep(60)
if mode != "no-values":
    shutil.copy(prepared / "values.safetensors", folder)
if mode == "cut-values":
    data = (folder / "values.safetensors").read_bytes()
    (folder / "values.safetensors").write_bytes(data[: len(data) // 2])
if mode == "half":
    (folder / "answer.json").write_text('{"engine": "fake", "compute"')
elif mode == "strange":
    (folder / "answer.json").write_text('{"engine": 7}')
elif mode != "no-answer":
    shutil.copy(prepared / "answer.json", folder)
