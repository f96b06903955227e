"""What can go wrong, and what follows from it.

::

    MillraceError
    ├── UsageError                 bad option, input or configuration: exit 2, nothing was started
    ├── JobBusyError               another run writes this job
    ├── StorageError               checkpoints cannot be read or written: disk full, not permitted, not reachable
    ├── RunFailedError             how a Failed run tells its caller, with the report
    ├── ShardLostError             a shard's worker died, and so did those that tried it again
    ├── TransientError             another attempt may succeed
    │   ├── RateLimitedError       the provider asked for a slower pace
    │   └── UnavailableError       time-out, connection lost, 5xx, an answer that is not whole
    └── PermanentError             the same request will fail again
        ├── RequestRejectedError   this request's content: halving finds the document
        │   └── RequestTooLargeError
        ├── RefusedError           credentials, quota, collection, dimension: the run stops
        │   └── ProviderDownError  so many requests in a row were given up on that none is sent any more
        ├── StoppedError           the run was told to stop; what landed is kept
        └── SourceChangedError     the source is not what the scan saw

Retry, halve or stop is one ``isinstance``. Messages never hold a key or a document's text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class MillraceError(Exception):
    """Root of every error that Millrace raises on purpose."""


class UsageError(MillraceError):
    """The caller can mend it; the message is one line that says how."""


class JobBusyError(MillraceError):
    """Another run writes this job; a job has one writer."""


class StorageError(MillraceError):
    """Checkpoints cannot be read or written: disk full, not permitted, not reachable."""


class RunFailedError(MillraceError):
    """A run ended as Failed. ``report`` has its counts, empty where it was read back from Prefect's result storage."""

    def __init__(self, message: str, report: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.report: dict[str, Any] = dict(report or {})


class ShardLostError(MillraceError):
    """A shard's worker died, and so did those that it was given to afterwards."""


class TransientError(MillraceError):
    """Another attempt may succeed.

    ``retry_after_seconds`` is the server's own wait, or None when it named none.
    """

    def __init__(self, message: str, *, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class RateLimitedError(TransientError):
    """The provider answered 429 or its like."""


class UnavailableError(TransientError):
    """Time-out, lost connection, 5xx, or an answer that is not whole."""


class PermanentError(MillraceError):
    """The same request will fail again."""


class RequestRejectedError(PermanentError):
    """The provider refuses this request's content (400, 422)."""


class RequestTooLargeError(RequestRejectedError):
    """The provider refuses this request's size (413)."""


class RefusedError(PermanentError):
    """Credentials, quota, missing collection or wrong dimension: every request will fail."""


class ProviderDownError(RefusedError):
    """A provider gave no usable answer for so long that the run stops; it can go on when the provider is back."""


class StoppedError(PermanentError):
    """The run was told to stop before this could be sent."""


class SourceChangedError(PermanentError):
    """The source changed between the scan and the load."""
