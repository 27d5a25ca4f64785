"""Which of many trade-offs are worth keeping."""

from __future__ import annotations

import numpy as np


def undominated(saved: np.ndarray, harm: np.ndarray) -> np.ndarray:
    """Indices of what nothing matches in saving and harm and beats in one, by saving."""
    order = np.lexsort((harm, -saved))
    least = np.minimum.accumulate(np.concatenate([[np.inf], harm[order]]))
    return order[harm[order] < least[:-1]][::-1]
