"""Encode one prompt, read from stdin as JSON: the whole program of a child process, and how to start it.

A vocabulary of 150,000 takes most of a second of Python to read, and so does importing torch: each in a process of its
own, they take that time once. What goes wrong here is not told here: the parent then encodes for itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SECONDS = 30.0  # to wait for it, once the parent has nothing else to do
_PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from core.text.encode_process import serve; serve()"

Encoded = list[tuple[int, str | None]]  # id and text of each token


def start_encoding(path: Path, text: str, chat: bool) -> subprocess.Popen[bytes]:
    """Start the process on a text, through the file's template if chat; OSError where it does not start."""
    # -P and a path of our own: the working folder may hold anything
    command = [sys.executable, "-P", "-X", "utf8", "-c", _PROGRAM, str(Path(__file__).parents[2])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdin is not None
    child.stdin.write(json.dumps({"path": str(path), "text": text, "chat": chat}).encode())
    child.stdin.close()
    child.stdin = None
    return child


def take_encoded(child: subprocess.Popen[bytes]) -> Encoded | None:
    """Wait for the tokens; None where the process failed."""
    try:
        said, _ = child.communicate(timeout=SECONDS)
        return [(int(i), text) for i, text in json.loads(said)]
    except (subprocess.TimeoutExpired, ValueError):
        child.kill()
        child.wait()
        return None


def serve() -> None:
    """Answer the one request."""
    import gc

    gc.disable()  # nothing here is thrown away, and looking for it costs a fifth of the time
    from core.formats.open_model import open_model
    from core.text.tokenizer import open_tokenizer

    asked = json.loads(sys.stdin.buffer.read())
    tokenizer = open_tokenizer(open_model(Path(asked["path"])))
    text = tokenizer.apply_chat_template(asked["text"]) if asked["chat"] else asked["text"]
    sys.stdout.write(json.dumps([(i, tokenizer.token_text(i)) for i in tokenizer.encode(text)]))
