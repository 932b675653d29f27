"""What the parts of a fit share: measured steps, where tables may bend, nonnegative costs."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from simulator.cost_model import Int64, StepFeatures
from simulator.profile import Residual

Float64 = NDArray[np.float64]

LAST_INTERVAL: Final = 1.05  # of a table: its end is at least this multiple of its start


@dataclass(frozen=True, slots=True)
class Steps:
    """Measured steps.

    Attributes:
        features: of n steps.
        ns: float64[n], their time.
        repeats: int64[n], how often each was measured.
    """

    features: StepFeatures
    ns: Float64
    repeats: Int64

    def at(self, rows: NDArray[np.bool_] | Int64) -> Steps:
        """Some of them."""
        columns = (getattr(self.features, field.name)[rows] for field in fields(self.features))
        return Steps(StepFeatures(*columns), self.ns[rows], self.repeats[rows])

    def __len__(self) -> int:
        return len(self.ns)


def may_be_knots(places: Int64) -> NDArray[np.bool_]:
    """Which ascending places may be knots: the last, and none that is all but the last.

    Everything beyond goes by the slope of the last interval, which would be nothing but noise.
    """
    kept: NDArray[np.bool_] = places * LAST_INTERVAL <= places[-1]
    kept[-1] = True
    return kept


def nonnegative_costs(columns: Float64, ns: Float64, weights: Float64) -> Float64:
    """Nonnegative costs whose weighted errors have the least sum of squares.

    Args:
        columns: float64[n, m], amounts.
        ns: float64[n], what they are to sum up to.
        weights: float64[n], of the errors.

    Returns:
        float64[m]; 0 for a column of zeros.
    """
    weighted = columns * weights[:, None]
    scale = np.linalg.norm(weighted, axis=0)
    scale[scale == 0] = 1.0
    # Amounts differ by ten orders of magnitude: columns of one length solve well.
    costs, _ = nnls(weighted / scale, ns * weights, maxiter=100 * columns.shape[1])
    return np.asarray(costs / scale, np.float64)


def residual_of(region: str, percent: Float64) -> Residual:
    """By how much steps of a region were missed.

    Args:
        region: its name.
        percent: float64[n], signed errors; not empty.
    """
    median, p90, p99 = np.percentile(np.abs(percent), (50, 90, 99)).tolist()
    return Residual(
        region=region,
        count=len(percent),
        median_percent=median,
        p90_percent=p90,
        p99_percent=p99,
        bias_percent=float(np.median(percent)),
    )
