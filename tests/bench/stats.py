"""Percentiles of samples."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def percentile(samples: Sequence[float | None], percent: float) -> float:
    """Of those that are numbers."""
    known = np.array([s for s in samples if s is not None], float)
    return float(np.nanpercentile(known, percent))
