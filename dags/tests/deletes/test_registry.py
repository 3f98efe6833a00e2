from dags.common.clickhouse.ddl import Table
from dags.common.clickhouse.tables import SCHEMA
from dags.common.deletion_requests import RequestKind
from dags.deletes.registry import DERIVED, EVENTS_TARGET, EXEMPT, KEYS, TARGETS


def test_every_table_of_the_schema_is_covered_or_computed_from_a_covered_one_or_exempt_with_a_reason() -> None:
    tables = {target.name for target in SCHEMA if isinstance(target, Table)}
    covered = [target.table.name for target in TARGETS] + [table.name for table in DERIVED] + list(EXEMPT)
    assert tables
    assert len(covered) == len(set(covered)), "a table is listed twice"
    assert set(covered) == tables, "add the table to dags/deletes/registry.py"
    assert all(EXEMPT.values())


def test_events_are_covered_by_every_kind_of_request() -> None:
    assert set(EVENTS_TARGET.columns) == set(RequestKind) == set(KEYS)


def test_a_key_is_compared_with_as_many_columns_as_it_has() -> None:
    for target in TARGETS:
        for kind, columns in target.columns.items():
            assert len(columns) == len(KEYS[kind]), f"{target.table.name}, {kind}"
