"""Keywords that a function does not have, told as every other argument that is not allowed."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from drowsy.files.messages import quoted

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def names_keywords(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, which names what it takes where Python would only say what it does not.

    Raises:
        TypeError: at a call with a keyword that there is none of.
    """
    _, *allowed = inspect.signature(function).parameters

    @wraps(function)
    def called(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        if unknown := [name for name in kwargs if name not in allowed]:
            raise TypeError(
                f"{function.__qualname__.removesuffix('.__init__')}: got "
                f"{', '.join(map(quoted, unknown))}, allowed: {', '.join(allowed)}"
            )
        return function(*args, **kwargs)

    return called
