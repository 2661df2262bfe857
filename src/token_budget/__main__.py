"""``python -m token_budget``: the command line, as the script ``token-budget``."""

import sys

from token_budget.cli import main

if __name__ == "__main__":
    sys.exit(main())
