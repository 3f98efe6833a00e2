"""What every test of `dags/common` begins with."""

from collections.abc import Iterator

import pytest

from dags.common.settings import describe_variables, get_settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """None of the project's variables is set, and no settings are kept from another test."""
    for variable in describe_variables():
        monkeypatch.delenv(variable.name, raising=False)
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()
