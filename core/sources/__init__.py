"""Traces that others made: other tools' files, other engines."""
