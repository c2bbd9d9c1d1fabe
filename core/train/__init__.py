"""The training stepper."""
