"""Drop path (stochastic depth, Huang et al. 2016): which residual branches each sample of a batch goes without.

Drawn here, on the host, as everything else that is random about a batch: a function of (seed, epoch, batch number), so
a training resumes to the bit on any device, and the device needs no random operator.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def draw_drop_path(rates: Sequence[float], batch: int, rng: np.random.Generator) -> np.ndarray:
    """Factors on the branches of the residual blocks, two per block (attention, MLP).

    Args:
        rates: probability of each block that a branch is left out, below 1.
        batch: samples.
        rng: source of the numbers.

    Returns:
        float32 (2 * blocks, B): 0 with the block's probability, else 1 / (1 - rate), so that the mean is 1.
    """
    rates_M1 = np.repeat(np.asarray(rates, np.float64), 2)[:, None]
    kept_MB = rng.random((len(rates_M1), batch)) >= rates_M1
    return (kept_MB / (1 - rates_M1)).astype(np.float32)
