"""The ``drowsy`` command."""

from __future__ import annotations

import sys

from drowsy.cli.arguments import parse
from drowsy.cli.inputs import check_options

# What a user can mend is told in a line; anything else keeps its traceback.
_USER_ERRORS = (ValueError, TypeError, LookupError, OSError, ImportError, RuntimeError)


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code (2 for bad input)."""
    args = parse(argv)
    try:
        check_options(args)
        args.run(args)
    except _USER_ERRORS as error:
        print(f"drowsy {args.command}: {error}", file=sys.stderr)
        return 2
    return 0
