"""Hold kl to transformers' logits of the same weights: python -m tests.bench.kl A.gguf B.gguf [--tokens N].

Prints the mean KL of both ways, the largest relative difference of a token's, and the seconds of ours.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from core.damage.corpus import Corpus, read_corpus
from core.damage.kl import token_kl
from core.formats.open_model import open_model
from core.system.arrays import Floats
from core.trace.run import open_side


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("A", type=Path)
    parser.add_argument("B", type=Path)
    parser.add_argument("--tokens", type=int, default=256)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    a, b = (open_side(open_model(path), "cpu", threads=1) for path in (asked.A, asked.B))
    text = read_corpus(None, a.tokenizer, 128, asked.tokens)
    start = time.perf_counter()
    ours = np.concatenate([token_kl(a, b, chunk, lambda: False).kl for chunk in text.chunks])
    seconds = time.perf_counter() - start
    theirs = by_transformers(asked.A, asked.B, text)
    print(f"{asked.B.name} from {asked.A.name}, {len(ours)} tokens in {seconds:.1f} s on one thread")
    print(f"mean KL {ours.mean():.8g} here, {theirs.mean():.8g} by transformers' logits: relative difference "
          f"{abs(ours.mean() / theirs.mean() - 1):.2g}; worst token {np.max(np.abs(ours - theirs) / theirs):.2g}")


def by_transformers(a: Path, b: Path, text: Corpus) -> Floats:
    """KL of every token from the logits that transformers has for the two files."""
    from transformers import AutoModelForCausalLM

    models = [AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
              for path in (a, b)]
    found = []
    with torch.inference_mode():
        for chunk in text.chunks:
            p, q = (m(torch.tensor([chunk])).logits[0].double().log_softmax(-1) for m in models)
            found.append((p.exp() * (p - q)).sum(-1).numpy())
    return np.concatenate(found)


if __name__ == "__main__":
    main()
