"""What Pinecone's errors mean here, by their class and status alone: their prose may quote a document."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import pinecone.errors as vendor

from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    TransientError,
    UnavailableError,
)

_TRANSIENT_STATUS = frozenset({408, 409, 425})  # the SDK has no class for two of these

_ERRORS: tuple[tuple[type[vendor.PineconeError], type[MillraceError]], ...] = (
    (vendor.PayloadTooLargeError, RequestTooLargeError),
    (vendor.RateLimitError, RateLimitedError),
    (vendor.UnauthorizedError, RefusedError),
    (vendor.ForbiddenError, RefusedError),
    (vendor.PaymentRequiredError, RefusedError),
    (vendor.NotFoundError, RefusedError),
    (vendor.FailedPreconditionError, RefusedError),
    (vendor.ServiceError, UnavailableError),
    (vendor.ApiError, RequestRejectedError),
    (vendor.PineconeValueError, RequestRejectedError),
    (vendor.PineconeTypeError, RequestRejectedError),
    (vendor.PineconeError, UnavailableError),  # time-out, connection, an answer that cannot be read
)


@contextmanager
def translated() -> Iterator[None]:
    """A block in which the vendor's errors become ours."""
    try:
        yield
    except vendor.PineconeError as error:
        raise _translate(error) from error


def kind_of(error: vendor.PineconeError) -> type[MillraceError]:
    """Which of our errors the vendor's is."""
    if isinstance(error, vendor.ApiError) and error.status_code in _TRANSIENT_STATUS:
        return UnavailableError
    return next(ours for theirs, ours in _ERRORS if isinstance(error, theirs))


def _translate(error: vendor.PineconeError) -> MillraceError:
    kind, message = kind_of(error), f"Pinecone answered {_facts(error)}"
    if issubclass(kind, TransientError):
        return kind(message, retry_after_seconds=_retry_after_seconds(error))
    return kind(message)


def _facts(error: vendor.PineconeError) -> str:
    """What happened without the vendor's prose, which may quote a document."""
    if not isinstance(error, vendor.ApiError):
        return f"nothing usable ({type(error).__name__})"
    code = f" {error.error_code}" if error.error_code else ""
    request = f" (request {error.request_id})" if error.request_id else ""
    return f"{error.status_code}{code}{request}"


def _retry_after_seconds(error: vendor.PineconeError) -> float | None:
    raw = (error.headers or {}).get("retry-after", "") if isinstance(error, vendor.ApiError) else ""
    try:
        seconds = float(raw)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
