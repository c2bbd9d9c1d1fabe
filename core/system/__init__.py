"""Errors, text, files, processes and GPUs of this machine. It knows nothing of models."""
