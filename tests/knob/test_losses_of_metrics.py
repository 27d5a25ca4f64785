"""What metrics say of their figures and losses."""

from __future__ import annotations

import pytest

from drowsy.knob.metrics import METRICS
from drowsy.study import knobs
from drowsy.tuning import evaluate
from drowsy.tuning.table import clips_table, points_table

LOST = {"top1": "lost (points)", "psnr": "lost (dB)", "ssim": "lost", "score": "lost"}


@pytest.mark.parametrize("metric", LOST)
def test_heads_of_tables_tell_what_losses_are_in(metric: str) -> None:
    assert METRICS[metric].lost == LOST[metric]
    points, clips = points_table([], metric, 8), clips_table([], metric)
    for told in (points, clips, knobs.table([], metric, 8)):
        assert f"  {LOST[metric]}  95% interval" in told.splitlines()[0]
    assert f"  {LOST[metric]} here  " in evaluate.table([], metric)


def test_more_can_be_lost_than_1_of_what_is_no_fraction() -> None:
    METRICS["psnr"].check_loss("max_loss", 5)
    METRICS["miou"].check_loss("max_loss", 1)
    with pytest.raises(ValueError, match=r"max_loss: got 1\.5, allowed: up to 1, as miou is a"):
        METRICS["miou"].check_loss("max_loss", 1.5)
