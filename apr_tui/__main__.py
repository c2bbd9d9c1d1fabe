"""Run the command by its package: python -m apr_tui. What it does: apr_tui/cli/main.py."""

import sys

from apr_tui.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
