"""Where a key is found: the environment first, then a Prefect Secret block of like name."""

from __future__ import annotations

import os
from typing import Any

from tasks.errors import UnavailableError, UsageError


def block_name(name: str) -> str:
    """The Secret block that stands for an environment variable: ``PINECONE_API_KEY`` is ``pinecone-api-key``."""
    return name.lower().replace("_", "-")


def find_secret(name: str) -> str | None:
    """The secret's value, or None where there is none: a server on one's own machine often asks for no key.

    Stripped of surrounding white space (a key read from a file often ends in a newline). Blocking: a block is read
    through Prefect's API, and only where one is configured. A server that is started for this run alone would hold no
    block that anybody made.

    Raises:
        UnavailableError: Prefect's API did not answer.
    """
    return os.environ.get(name, "").strip() or _from_block(block_name(name)) or None


def resolve_secret(name: str) -> str:
    """The secret's value, as `find_secret`.

    Raises:
        UsageError: it is not there; the message says what to set.
        UnavailableError: Prefect's API did not answer.
    """
    value = find_secret(name)
    if value is None:
        raise UsageError(f"{name} is not set: export it or make a Prefect Secret block named {block_name(name)}")
    return value


def _from_block(block: str) -> str:
    from prefect.settings import get_current_settings  # noqa: PLC0415 - Prefect takes a second to import

    if not get_current_settings().api.url:
        return ""
    from prefect.blocks.system import Secret  # noqa: PLC0415

    try:
        # `_sync`: inside a flow or a running loop Prefect would hand back a coroutine instead.
        secret: Any = Secret.load(block, _sync=True)  # type: ignore[call-arg]
    except ValueError:
        return ""  # Prefect's word for "no such block"
    except Exception as error:
        raise UnavailableError(f"Prefect's API did not answer for the Secret block {block}") from error
    return str(secret.get()).strip()
