"""What a converter is to make of an original's tensors, keys and tokenizer: tables, and the reading of the original."""
