"""The ``drowsy`` command."""

from __future__ import annotations

import dis
import os
import sys

import torch

from drowsy.cli.arguments import parse
from drowsy.cli.options import check_options
from drowsy.files.messages import legible

# As shells call a process that SIGINT or SIGPIPE ended.
INTERRUPTED, PIPE_BROKE = 130, 141
_OURS = ("drowsy", "drowsy_kernels")


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; returns the exit code (2 for bad input).

    What drowsy refuses, a file or a package that is not there and a full memory are told in a line.
    Any other error is one of drowsy or of the network, and keeps its traceback.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except OSError as error:
        # What is left of the output must go somewhere at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            return PIPE_BROKE  # who read it has seen enough
        print(f"drowsy: the output cannot be written ({error.strerror})", file=sys.stderr)
        return 2


def _run(argv: list[str] | None) -> int:
    args = parse(argv)
    try:
        check_options(args)
        args.run(args)
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print(f"drowsy {args.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except torch.OutOfMemoryError as error:
        first, *_ = str(error).splitlines()
        print(f"drowsy {args.command}: {first} (--batch takes a smaller number)", file=sys.stderr)
        return 2
    except Exception as error:
        if "can't allocate memory" in str(error):  # as torch says of the host's
            print(
                f"drowsy {args.command}: the memory does not suffice (--batch takes a smaller "
                "number, --images fewer images)",
                file=sys.stderr,
            )
            return 2
        if not isinstance(error, (OSError, ImportError)) and not _is_refusal(error):
            raise
        print(f"drowsy {args.command}: {_told(error)}", file=sys.stderr)
        return 2
    return 0


def _told(error: Exception) -> str:
    """An error in words: of the operating system's, which file, before what is wrong with it."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{legible(str(error.filename))}: {error.strerror}"
    return str(error)


def _is_refusal(error: Exception) -> bool:
    """Whether drowsy raised it by a ``raise`` of its own, and nothing that drowsy called."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    assert last is not None, "it was raised"
    frame = last.tb_frame
    library = str(frame.f_globals.get("__name__")).partition(".")[0]
    return library in _OURS and dis.opname[frame.f_code.co_code[last.tb_lasti]] == "RAISE_VARARGS"
