"""What the core raises when a driver breaks its contract."""

from __future__ import annotations


class OutOfPagesError(RuntimeError):
    """More KV pages were asked for than are free."""


class PlanOrderError(RuntimeError):
    """A plan was committed out of order, or asked for when none may be made or read."""


class IllegalTransitionError(RuntimeError):
    """A request was moved to a status that cannot follow its present one."""
