"""`python -m nextscale`: the command."""

import sys

from nextscale.commands.main import main

if __name__ == "__main__":
    sys.exit(main())
