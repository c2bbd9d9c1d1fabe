"""Other engines, run in a child process."""
