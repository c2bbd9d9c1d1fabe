"""Show a result where Python runs: in a prompt, in a notebook, as a table."""
