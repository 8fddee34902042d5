"""What puts a function in a worker process into its job's span; imports nothing that the worker does not need."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from opentelemetry import context, propagate

INSIDE = f"{__name__}:inside"
"""As the scope of an assignment names it."""


@contextlib.contextmanager
def inside(carrier: dict[str, str]) -> Iterator[None]:
    """Make the span that `carrier` names the current one, as propagators write it (W3C Trace Context)."""
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
