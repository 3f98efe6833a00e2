"""Fixtures of the tests of `dags/common`."""

from collections.abc import Iterator

import pytest

from dags.common.settings import Settings, get_settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Unset every variable of the project, and forget the settings of other tests."""
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
