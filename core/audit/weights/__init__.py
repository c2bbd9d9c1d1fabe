"""Two tensors of one shape beside each other: whether rounding explains the difference, and what it is in words."""
