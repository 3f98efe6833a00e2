from dags.common.clickhouse.ddl import Table
from dags.common.clickhouse.tables import SCHEMA
from dags.common.deletion_requests import RequestKind
from dags.deletes.registry import DERIVED, EVENTS_TARGET, EXEMPT, KEYS, TARGETS


def test_every_table_of_the_schema_is_reached_or_computed_from_one_that_is_or_exempt_with_a_reason() -> None:
    tables = {target.name for target in SCHEMA if isinstance(target, Table)}
    reached = [target.table.name for target in TARGETS] + [table.name for table in DERIVED] + list(EXEMPT)
    assert tables
    assert len(reached) == len(set(reached)), "a table is entered twice"
    assert set(reached) == tables, "enter the table in dags/deletes/registry.py"
    assert all(EXEMPT.values())


def test_events_are_reached_by_every_kind_of_request() -> None:
    assert set(EVENTS_TARGET.columns) == set(RequestKind) == set(KEYS)


def test_a_key_is_compared_with_as_many_columns_as_it_has() -> None:
    for target in TARGETS:
        for kind, columns in target.columns.items():
            assert len(columns) == len(KEYS[kind]), f"{target.table.name}, {kind}"
