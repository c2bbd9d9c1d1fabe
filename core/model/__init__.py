"""The one forward: what a file's architecture says, its stages, its operations, what drives it."""
