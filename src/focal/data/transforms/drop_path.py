"""Drop path (stochastic depth, Huang et al. 2016): residual branches are dropped at random, for each sample separately.

The choice is made on the host, as a function of (seed, epoch, batch number) like everything random about a batch. So
training resumes bit for bit on any device, and the device needs no random operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_drop_path(rates: Sequence[float], batch: int, rng: np.random.Generator) -> np.ndarray:
    """Draw the factors by which the residual branches are multiplied, two per block (attention, MLP).

    Args:
        rates: for each block, the probability that a branch is dropped, below 1.
        batch: number of samples.
        rng: source of the numbers.

    Returns:
        float32 (2 * blocks, B): 0 with the block's probability, otherwise 1 / (1 - rate), so that the mean is 1.
    """
    rates_M1 = np.repeat(np.asarray(rates, np.float64), 2)[:, None]
    kept_MB = rng.random((len(rates_M1), batch)) >= rates_M1
    return (kept_MB / (1 - rates_M1)).astype(np.float32)
