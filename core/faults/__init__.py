"""Faults to plant, in values and in bytes."""
