"""What ``convert`` did with a network, as text."""

from __future__ import annotations

from collections.abc import Mapping

from drowsy.cost import align
from drowsy.net import DrowsyNet


def inspect(net: DrowsyNet, shares: Mapping[str, float] | None = None) -> str:
    """One line a convolution: what belongs to its neurons, its flavour, and why.

    Args:
        net: a converted network.
        shares: of the multiplications, from ``layer_shares``; adds a column.
    """
    header = ["layer", "convolution", "batch norm", "activation", "flavour", "why"]
    rows = [
        [
            line.name,
            line.geometry,
            line.norm or "-",
            line.activation or "-",
            line.fill or "-",
            line.reason,
        ]
        for line in net.report
    ]
    if shares is not None:
        header.insert(2, "share")
        for row in rows:
            row.insert(2, f"{shares[row[0]]:.1%}" if row[0] in shares else "-")
    return align([header, *rows])
