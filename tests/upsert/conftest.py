"""What the stores' tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.upsert.contract import SECRET
from tests.upsert.postgres import Postgres, running_postgres


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One server a test process."""
    with running_postgres(SECRET) as server:
        yield server
