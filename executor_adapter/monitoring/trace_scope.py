"""Puts a function in a worker process into its job's span. Workers import it, so it imports OpenTelemetry alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import context, propagate

INSIDE = f"{__name__}:inside"
"""The reference by which an attempt's scope names `inside`."""


@contextlib.contextmanager
def inside(carrier: dict[str, str], _: object) -> Iterator[None]:
    """Make the span in `carrier` the current one; `carrier` is what propagators write (W3C Trace Context)."""
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
