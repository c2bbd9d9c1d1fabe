"""The most that a stranger's file may ask for, in one table. Who reads what stands in the reader; here nothing is read.

Each is far above what a real file has, and low enough that a file of a few bytes, a sparse one or a device cannot hold
the machine: what is above is refused by name (exit 3) before it is read.
"""

from __future__ import annotations

HEADER_BYTES = 256 << 20     # of a GGUF file before its tensors: 30 MB with a vocabulary of 262,000 and its merges
METADATA_BYTES = 16 << 20    # of an .apr file: the format's own limit
ARRAY_ITEMS = 1 << 22        # of one array of the metadata: the largest known vocabulary has 262,144 tokens
TENSORS, KEYS = 1 << 20, 1 << 16  # of one file: 80 layers of 256 experts, each by itself, are 61,440 tensors
LAYERS = 1 << 14             # no model has 200, and no screen could list so many
PROMPT_BYTES = 16 << 20      # --prompt-file, --prompts: no context window holds four million tokens
CONTRACT_BYTES = 1 << 20     # YAML, read slowly; anchors and aliases are not read, for they multiply
CONFIG_BYTES = 1 << 20       # TOML of a training run
IMPORT_BYTES = 16 << 20      # another tool's trace; of a 7B model it has 14 KB
COLUMNS = 1 << 10            # of a table that is imported
CELLS = 1 << 20              # of a table that is imported
DOCUMENT_BYTES = 64 << 20    # JSON: manifest, verdict, findings, run.json, gates, config.json, merges and vocabulary
TABLE_BYTES = 1 << 30        # CSV of a bundle: 80 layers x 20 stages x 4,096 tokens of 150 bytes
LOG_BYTES = 1 << 30          # .jsonl of a training run
LINE_BYTES = 8 << 20         # of one of its lines: the gradients of a step
CORPUS_BYTES = 64 << 20       # --corpus: read whole; a thousand million tokens would take weeks
TEXT_FILE_BYTES = 4 << 30    # one document of a corpus
STAGE_BYTES = 4 << 30        # one stage that another tool saved: 4,096 tokens of 152,000 logits have 2.5 GB
CACHE_BYTES = 16 << 20       # what is kept between runs: digests, rungs of a ladder, a compiled library
JSON_DEPTH = 64              # arrays and objects inside one another
MESSAGE_BYTES = 2 << 10      # of an error or a note on stderr
THREADS, BATCH = 1 << 10, 1 << 16  # --threads, --batch
