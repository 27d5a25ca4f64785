"""Files of Linux' /sys, which hold a line, or nothing, or refuse to be read."""

from __future__ import annotations

from pathlib import Path

from drowsy.sensors.sensor import Unread


def read_line(file: Path, denied: str = "run as root, or let others read it") -> str:
    """What the file holds, without spaces around it.

    Args:
        denied: what helps where it may not be read.

    Raises:
        Unread: it cannot be read, or holds nothing.
    """
    try:
        text = file.read_text().strip()
    except PermissionError as error:
        raise Unread(f"{file} may not be read ({error.strerror}): {denied}") from error
    except OSError as error:
        raise Unread(f"{file} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise Unread(f"{file} holds no text ({error.reason})") from error
    if not text:
        raise Unread(f"{file} is empty")
    return text
