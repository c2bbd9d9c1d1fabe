"""The trained-weights suite: surgery of a file, its faults, its harmless twins, its clean pairs."""
