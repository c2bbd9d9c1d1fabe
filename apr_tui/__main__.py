"""python -m apr_tui is apr-tui."""

import sys

from apr_tui.cli.main import main

sys.exit(main())
