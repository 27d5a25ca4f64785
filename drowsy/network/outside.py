"""What no compiler may look into.

``torch.compiler.disable`` loads all of Dynamo, which takes as long as the rest of torch: this
module is imported where a compiler runs, and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


@torch.compiler.disable(
    reason="a drowsy network is compared with its model at its first call: call it once before "
    "it is compiled, or give drowsy.convert an example"
)
def settle(compare: Callable[[str, Any, Any], None], method: str, args: Any, kwargs: Any) -> None:
    """Compares a network with its model at a call of ``method``, outside of any graph."""
    compare(method, args, kwargs)
