"""The screen and the command line of apr-tui. No judgement of numbers: core has that."""
