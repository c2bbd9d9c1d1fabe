"""What holds a training run: gates, invariants, probes."""
