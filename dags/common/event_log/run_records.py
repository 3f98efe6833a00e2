"""The records of runs in bulk, where one record that cannot be read does not hide the others."""

import datetime as dt
from collections.abc import Iterator, Mapping, Sequence

import dagster as dg
import sqlalchemy as sa

MAX_RUNS_PER_PAGE = 1000


def run_id_pages(instance: dg.DagsterInstance, filters: dg.RunsFilter) -> Iterator[Sequence[str]]:
    """Yield the ids of the runs that match, in pages."""
    cursor = None
    while page := instance.get_run_ids(filters, cursor=cursor, limit=MAX_RUNS_PER_PAGE):
        yield page
        cursor = page[-1]


def read_records(
    instance: dg.DagsterInstance, run_ids: Sequence[str]
) -> tuple[Mapping[str, dg.RunRecord], Sequence[str]]:
    """Return the records of existing runs by id, and the ids whose record this version of Dagster cannot read."""
    if not run_ids:
        return {}, []
    try:
        records = instance.get_run_records(dg.RunsFilter(run_ids=list(run_ids)))
    except (sa.exc.SQLAlchemyError, OSError):
        # The database failed, not a record: the caller tries again later.
        raise
    except Exception:  # noqa: BLE001
        # The decoder can raise anything for one malformed record. Halving finds it.
        if len(run_ids) == 1:
            return {}, run_ids
        half = len(run_ids) // 2
        first, second = read_records(instance, run_ids[:half]), read_records(instance, run_ids[half:])
        return {**first[0], **second[0]}, [*first[1], *second[1]]
    return {record.dagster_run.run_id: record for record in records}, []


def ended_at(record: dg.RunRecord) -> dt.datetime:
    """Return when a run ended."""
    if record.end_time is not None:
        return dt.datetime.fromtimestamp(record.end_time, dt.UTC)
    return record.update_timestamp.replace(tzinfo=dt.UTC)


def created_at(record: dg.RunRecord) -> dt.datetime:
    """Return when a run was created."""
    return record.create_timestamp.replace(tzinfo=dt.UTC)
