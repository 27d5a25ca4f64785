"""Which of a model's convolutions can be drowsy layers, and what is told of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import nn

from drowsy.network.convolutions import conv_at_heart


def left_awake(
    names: Sequence[str], modules: Mapping[str, nn.Module], skip: Sequence[str]
) -> dict[str, str]:
    """The convolutions that stay as they are, and why."""
    skipped = _matching(skip, list(names))
    left = {}
    for name in names:
        if name in skipped:
            left[name] = "left awake, as asked"
        elif reason := why_not(modules[name]):
            left[name] = f"left awake: {reason}"
    return left


def geometry(module: nn.Module) -> str:
    if not isinstance(module, nn.Conv2d):
        return type(module).__name__ if type(module) is not nn.Module else "F.conv2d"
    size = "x".join(map(str, module.kernel_size))
    groups = f" groups {module.groups}" if module.groups > 1 else ""
    stride = f" /{module.stride[0]}" if module.stride != (1, 1) else ""
    return f"{module.in_channels}->{module.out_channels} {size}{stride}{groups}"


def why_not(module: nn.Module) -> str | None:
    """Why a convolution cannot become a drowsy layer; None where it can."""
    found = conv_at_heart(module)
    return found if isinstance(found, str) else None


def _matching(patterns: Sequence[str], names: list[str]) -> set[str]:
    if isinstance(patterns, str):
        raise TypeError(f"skip: got the string {patterns!r}, allowed: a list of names")
    found: set[str] = set()
    for pattern in patterns:
        if pattern.startswith("re:"):
            try:
                hits = [name for name in names if re.search(pattern[3:], name)]
            except re.error as error:
                raise ValueError(
                    f"skip: got {pattern!r}, allowed: a name, or re: and a regular expression "
                    f"({error})"
                ) from error
        else:
            hits = [name for name in names if name == pattern]
        if not hits:
            raise ValueError(
                f"skip: {pattern!r} names no convolution; there are {', '.join(names)}"
            )
        found.update(hits)
    return found
