"""The command `nextscale`, and `python -m nextscale`."""

import sys

from nextscale.console import complain


def main() -> int:
    """Run the command; Ctrl+C ends it in one line also while its parts are being imported."""
    try:
        from nextscale.commands.main import main as run

        return run()
    except KeyboardInterrupt:
        complain("stopped")
        return 130


if __name__ == "__main__":
    sys.exit(main())
