"""Threads that run jobs and post messages."""
