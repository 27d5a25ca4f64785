"""A page in the browser on which a knob is turned while its network looks at pictures.

``feed`` is what all viewers look at, ``network`` what they share, ``viewer`` what each of them has
set; ``telling``, ``picture`` and ``lines`` show what comes of it, ``page`` puts it in its place,
``gate`` decides who may see it, and ``server`` starts it. A viewer's settings hold for that
viewer's own pictures alone.
"""

from drowsy.live.server import Show, serve

__all__ = ["Show", "serve"]
