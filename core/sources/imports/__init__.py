"""Readers of other tools' traces, a file a format."""
