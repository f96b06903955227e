"""What Qdrant's errors mean here, by their class and status alone: their prose may quote a document."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from grpc import StatusCode
from grpc.aio import AioRpcError
from qdrant_client.common.client_exceptions import QdrantException, ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    RequestTooLargeError,
    TransientError,
    UnavailableError,
)

_BY_STATUS: dict[int, type[MillraceError]] = {
    401: RefusedError,
    403: RefusedError,
    404: RefusedError,
    408: UnavailableError,
    413: RequestTooLargeError,
    425: UnavailableError,
    429: RateLimitedError,
}
_BY_CODE: dict[StatusCode, type[MillraceError]] = {
    StatusCode.UNAUTHENTICATED: RefusedError,
    StatusCode.PERMISSION_DENIED: RefusedError,
    StatusCode.NOT_FOUND: RefusedError,
    StatusCode.UNIMPLEMENTED: RefusedError,
    StatusCode.FAILED_PRECONDITION: RefusedError,
    StatusCode.INVALID_ARGUMENT: RequestRejectedError,
    StatusCode.ALREADY_EXISTS: RequestRejectedError,
    StatusCode.OUT_OF_RANGE: RequestTooLargeError,  # what Qdrant's gRPC library says of a message over its limit
    StatusCode.RESOURCE_EXHAUSTED: RateLimitedError,
}
"""Any other code is a server that could not answer."""
KEY_STATUS = frozenset({401, 403, StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED})
CONFLICT_STATUS = frozenset({409, 400, StatusCode.ALREADY_EXISTS, StatusCode.INVALID_ARGUMENT})

_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_VENDOR = (
    QdrantException,
    UnexpectedResponse,
    ResponseHandlingException,
    AioRpcError,
    ValueError,  # the embedded engine's word for a request that does not fit
    OSError,
    sqlite3.Error,
)


@contextmanager
def translated() -> Iterator[None]:
    """A block in which the vendor's errors become ours."""
    try:
        yield
    except _VENDOR as error:
        raise _translate(error) from error


def status_of(error: BaseException | None) -> int | StatusCode | None:
    """The HTTP status or the gRPC code of a vendor's error, where it has one."""
    match error:
        case UnexpectedResponse():
            return error.status_code
        case AioRpcError():
            return error.code()
    return None


def _translate(error: Exception) -> MillraceError:
    kind, message = _kind_of(error), f"Qdrant answered {_fact(error)}"
    if issubclass(kind, TransientError):
        seconds = error.retry_after_s if isinstance(error, ResourceExhaustedResponse) else None
        return kind(message, retry_after_seconds=seconds)
    return kind(message)


def _kind_of(error: Exception) -> type[MillraceError]:
    match status_of(error):
        case StatusCode() as code:
            return _BY_CODE.get(code, UnavailableError)
        case int(status) if status in _BY_STATUS:
            return _BY_STATUS[status]
        case int(status) if _CLIENT_ERROR <= status < _SERVER_ERROR:
            return RequestRejectedError
    match error:
        case QdrantException():  # a 429 that names its wait, or one whose wait cannot be read
            return RateLimitedError
        case ValueError():
            return RequestRejectedError
    return UnavailableError


def _fact(error: Exception) -> str:
    status = status_of(error)
    if isinstance(status, StatusCode):
        return str(status.name)
    if isinstance(error, ResourceExhaustedResponse):
        return "that its limit is reached"
    cause = getattr(error, "source", error)  # the HTTP client's own error
    return f"{status}" if status is not None else f"nothing usable ({type(cause).__name__})"
