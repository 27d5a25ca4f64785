"""Algorithm 1 with and without prefix reuse, on the five-layer network at k = 8.

Prediction, in multiplications: layer i of n is convolved ``k**(i-1)`` times, not ``k**n``; what
follows the last layer (pooling and three linear layers) still runs for every setting.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import drowsy
from drowsy import models
from drowsy.evaluation.evaluator import Evaluator
from drowsy.knob.costs import layer_costs
from drowsy.searches.settings import all_settings

IMAGES = 100


def test_prefix_reuse(benchmark: Any) -> None:
    """Evaluations per second: one subtree of 8**4 settings, against whole networks one by one."""
    model = models.load("caffenet_cifar").to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    net = drowsy.convert(model)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=generator)
    images = images.contiguous(memory_format=torch.channels_last)
    evaluator = Evaluator(net, images, torch.randint(0, 10, (IMAGES,), generator=generator))
    subtree = [setting for setting in all_settings(5, 8) if setting[0] == 3]
    evaluator.evaluate((3,) * 5)

    one_by_one = subtree[:: len(subtree) // 64]
    start = time.perf_counter()
    for setting in one_by_one:
        evaluator.evaluate(setting)
    without = len(one_by_one) / (time.perf_counter() - start)

    start = time.perf_counter()
    benchmark.pedantic(lambda: list(evaluator.walk(subtree)), rounds=1)
    reused = len(subtree) / (time.perf_counter() - start)

    costs = [cost.multiplies for cost in layer_costs(model, (3, 32, 32))]
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    shared = sum(8**i * cost for i, cost in enumerate(costs)) + 8**5 * linear
    benchmark.extra_info.update(
        evaluations_per_second_without=without,
        evaluations_per_second_with=reused,
        gain=reused / without,
        predicted_gain_in_multiplications=8**5 * (sum(costs) + linear) / shared,
        images=IMAGES,
        threads=torch.get_num_threads(),
    )
    assert reused > 3 * without
