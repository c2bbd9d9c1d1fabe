"""GGUF and .apr: opened, read and written."""
