"""Drop the tables that `web_sessions` replaced, as soon as it has all of their days."""

import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.ddl import SchemaForm, statement_hash
from dags.common.clickhouse.query import Insert, quoted
from dags.common.clickhouse.tables import SCHEMA_MIGRATIONS

if TYPE_CHECKING:
    from clickhouse_driver import Client

RETIRED_TABLES = ("web_stats_daily", "web_stats_hourly", "web_bounces_daily", "web_bounces_hourly")

TABLES_STATEMENT = "SELECT name FROM system.tables WHERE database = currentDatabase() AND name IN %(names)s"
DAYS_STATEMENT = "SELECT DISTINCT toDate(period_bucket) FROM {table}"
COMPUTED_DAYS_STATEMENT = "SELECT DISTINCT day FROM web_session_days"


@dataclass(frozen=True)
class RetiredTable:
    """A table that is not in the schema anymore, and its days that its replacement does not have yet."""

    name: str
    missing_days: tuple[dt.date, ...]

    def __str__(self) -> str:
        if not self.missing_days:
            return f"{self.name}: web_sessions has all of its days, so it is dropped."
        first, last = self.missing_days[0], self.missing_days[-1]
        return (
            f"{self.name} stays: web_sessions lacks {len(self.missing_days)} of its days, from {first} to {last}. "
            "Compute them by a backfill of web_sessions_daily (docs/backfills.md), and apply the schema again: dagster "
            f"job backfill -l web_analytics -j web_analytics_daily_job --from {first} --to {last} --noprompt"
        )


def drop_retired_tables(
    cluster: ClickhouseCluster,
    clustered: bool,  # noqa: FBT001 - as of apply_schema
    *,
    applied_by: str,
    dry_run: bool = False,
) -> list[RetiredTable]:
    """Drop the retired tables without missing days on any host, unless it is a dry run; return all that were found."""
    missing: dict[str, set[dt.date]] = {}
    for found in cluster.map_all_hosts(_missing_days, retryable=True).result().values():
        for name, days in found.items():
            missing.setdefault(name, set()).update(days)
    retired = [RetiredTable(name, tuple(sorted(missing[name]))) for name in RETIRED_TABLES if name in missing]
    form = SchemaForm(cluster.database, cluster.name if clustered else None)

    def drop(client: "Client") -> None:
        for table in retired:
            if not table.missing_days:
                statement = f"DROP TABLE IF EXISTS {form.full_name(table.name)}{form.on_cluster} SYNC"
                client.execute(statement)
                row = (table.name, statement_hash([]), [statement], applied_by)
                columns = ("object", "statement_hash", "statements", "applied_by")
                Insert(SCHEMA_MIGRATIONS.name, columns, [row])(client)

    if retired and not dry_run:
        if clustered:
            cluster.any_host(drop, retryable=True).result()
        else:
            cluster.map_all_hosts(drop, retryable=True).result()
    return retired


def _missing_days(client: "Client") -> dict[str, set[dt.date]]:
    names = {name for (name,) in client.execute(TABLES_STATEMENT, {"names": (*RETIRED_TABLES, "web_session_days")})}
    computed = {day for (day,) in client.execute(COMPUTED_DAYS_STATEMENT)} if "web_session_days" in names else set()
    return {
        name: {day for (day,) in client.execute(DAYS_STATEMENT.format(table=quoted(name)))} - computed
        for name in RETIRED_TABLES
        if name in names
    }
