"""A small model made from nothing."""
