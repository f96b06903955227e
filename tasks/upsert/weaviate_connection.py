"""The official client's connection to a Weaviate server: REST for collections, gRPC for objects, errors in our words.

gRPC calls go to the client's own generated stub. Its `insert_many` and `query` send the very same messages, but unpack
a float32 array into Python floats and pack it again, wait and try again up to six times by themselves where the server
is away, and keep the status of what failed from the caller.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import weaviate
from grpc import StatusCode
from grpc.aio import AioRpcError
from httpx import HTTPError
from weaviate.classes.init import AdditionalConfig, Auth, Timeout
from weaviate.config import GrpcConfig
from weaviate.exceptions import UnexpectedStatusCodeError, WeaviateBaseError

from tasks.errors import (
    MillraceError,
    RateLimitedError,
    RefusedError,
    RequestRejectedError,
    UnavailableError,
    UsageError,
)
from tasks.provider_settings import WeaviateSettings

_TIMEOUT_SECONDS = 90.0  # the client's default for an insert
_OLDEST_SERVER = (1, 29)  # takes a query's vector in the field that later servers want it in
_CHANNEL_OPTIONS = [("grpc.enable_retries", 0), ("grpc.max_reconnect_backoff_ms", 5_000)]
_CLOUD_DOMAINS = (".weaviate.cloud", ".weaviate.network")

_GRPC_ERRORS: Mapping[StatusCode, type[MillraceError]] = {  # all others: UnavailableError
    StatusCode.UNAUTHENTICATED: RefusedError,
    StatusCode.PERMISSION_DENIED: RefusedError,
    StatusCode.NOT_FOUND: RefusedError,
    StatusCode.UNIMPLEMENTED: RefusedError,
    StatusCode.FAILED_PRECONDITION: RefusedError,
    StatusCode.INVALID_ARGUMENT: RequestRejectedError,
    StatusCode.OUT_OF_RANGE: RequestRejectedError,
    StatusCode.RESOURCE_EXHAUSTED: RateLimitedError,
}
_HTTP_ERRORS: Mapping[int, type[MillraceError]] = {  # all others: RequestRejectedError below 500, then UnavailableError
    401: RefusedError,
    403: RefusedError,
    404: RefusedError,
    408: UnavailableError,
    425: UnavailableError,
    429: RateLimitedError,
}


class Connection:
    """One client, connected by `open`. ``max_message_bytes`` is the server's own limit, None where it tells none."""

    def __init__(self, settings: WeaviateSettings, api_key: str | None) -> None:
        self.max_message_bytes: int | None = None
        self.client = _build_client(settings, api_key)

    async def open(self) -> None:
        """Connect, once; vendor errors pass, see `translated`.

        Raises:
            UsageError: the server is too old.
        """
        await self.client.connect()
        meta: Mapping[str, Any] = await self.client.get_meta()
        version = str(meta["version"])
        if tuple(int(part) for part in version.split(".")[:2]) < _OLDEST_SERVER:
            raise UsageError(f"Weaviate {version} is too old: use 1.29 or later")
        if told := meta.get("grpcMaxMessageSize"):
            self.max_message_bytes = int(told)

    async def ask(self, method: str, request: Any) -> Any:
        """One gRPC call, tried once.

        Raises:
            TransientError: the server is away, too slow or too busy.
            PermanentError: it refuses the key or the request.
        """
        connection = self.client._connection  # noqa: SLF001 - the stub and its headers have no public name
        with translated():
            asked: Awaitable[Any] = getattr(connection.grpc_stub, method)(
                request, metadata=connection.grpc_headers(), timeout=_TIMEOUT_SECONDS
            )
            return await asked

    async def aclose(self) -> None:
        """Close both kinds of connections."""
        await self.client.close()


@contextmanager
def translated() -> Iterator[None]:
    """The vendor's errors as ours, without their words, which may quote a document."""
    try:
        yield
    except AioRpcError as error:
        kind = _GRPC_ERRORS.get(error.code(), UnavailableError)
        # `from None`: the client's errors quote the server, and the server may quote a text.
        raise kind(f"Weaviate answered {error.code().name} over gRPC") from None
    except UnexpectedStatusCodeError as error:
        raise _kind_of(error.status_code)(f"Weaviate answered {error.status_code}") from None
    except (WeaviateBaseError, HTTPError) as error:
        raise UnavailableError(f"Weaviate answered nothing usable ({type(error).__name__})") from None


def _kind_of(status: int) -> type[MillraceError]:
    return _HTTP_ERRORS.get(status, RequestRejectedError if status < 500 else UnavailableError)  # noqa: PLR2004


def _build_client(settings: WeaviateSettings, api_key: str | None) -> weaviate.WeaviateAsyncClient:
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise UsageError(f"the key in {settings.api_key} holds a character that no header takes")
    place = urlsplit(settings.url)
    is_secure, host = place.scheme == "https", place.hostname or ""
    grpc_host, grpc_port = host, settings.grpc_port
    if is_secure and host.endswith(_CLOUD_DOMAINS):
        grpc_host, grpc_port = _cloud_grpc_host(host), 443
    return weaviate.use_async_with_custom(
        http_host=host,
        http_port=place.port or (443 if is_secure else 80),
        http_secure=is_secure,
        grpc_host=grpc_host,
        grpc_port=grpc_port,
        grpc_secure=is_secure,
        auth_credentials=None if api_key is None else Auth.api_key(api_key),
        additional_config=AdditionalConfig(
            timeout=Timeout(init=_TIMEOUT_SECONDS, query=_TIMEOUT_SECONDS, insert=_TIMEOUT_SECONDS),
            grpc_config=GrpcConfig(channel_options=_CHANNEL_OPTIONS),
        ),
        skip_init_checks=True,  # they ask PyPI for the client's newest version
    )


def _cloud_grpc_host(host: str) -> str:
    """The cloud answers gRPC under a name of its own; the client has the rule, but behind a function that opens."""
    if host.endswith(".weaviate.network"):
        name, _, domain = host.partition(".")
        return f"{name}.grpc.{domain}"
    return f"grpc-{host}"
