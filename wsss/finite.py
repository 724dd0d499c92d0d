"""Refuse what a network computed if it is not finite: NaN would be the greatest score everywhere."""

from torch import Tensor

from wsss.errors import ArgumentError


def require_finite(values: Tensor, what: str) -> Tensor:
    """Return `values`. Raises ArgumentError, which begins with `what` they are, if one is NaN or infinite."""
    if not values.isfinite().all():
        raise ArgumentError(f"{what} hold NaN or infinite values, expected finite ones; check that the network was trained to a "
                            "finite loss, or compute them in float32")
    return values
