"""The ``drowsy`` command."""

from drowsy.cli.main import main

__all__ = ["main"]
