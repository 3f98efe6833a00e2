"""The selection of teams in the table `web_pre_aggregated_teams`. Without a selected team, all teams are computed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.query import Insert, Query, quoted
from dags.common.clickhouse.tables import WEB_PRE_AGGREGATED_TEAMS, WEB_SESSIONS

if TYPE_CHECKING:
    from clickhouse_driver import Client

REMOVAL_TIMEOUT_SECONDS = 3600.0
SELECTION_STATEMENT = "SELECT team_id FROM web_pre_aggregated_teams FINAL WHERE is_selected = 1 ORDER BY team_id"


@dataclass(frozen=True)
class SelectionChange:
    """A change of the selection, and the number of removed sessions."""

    added: tuple[int, ...]
    removed: tuple[int, ...]
    sessions_removed: int


def selected_teams(cluster: ClickhouseCluster) -> tuple[int, ...] | None:
    """Return the selected teams, or None when all teams are computed."""
    teams = tuple(team_id for (team_id,) in cluster.any_host(Query(SELECTION_STATEMENT)).result())
    return teams or None


def select_teams(cluster: ClickhouseCluster, team_ids: Sequence[int]) -> SelectionChange:
    """Select exactly these teams, or all teams when there are none, and remove the rows of the others.

    It may be called again at any time: the rows of every team that is not selected are removed.
    """
    before = set(selected_teams(cluster) or ())
    after = set(team_ids)
    version = time.time_ns()
    rows = [(team_id, 1, version) for team_id in sorted(after)] + [(one, 0, version) for one in sorted(before - after)]
    if rows:
        insert = Insert(WEB_PRE_AGGREGATED_TEAMS.name, ("team_id", "is_selected", "version"), rows)
        _where_written(cluster, insert)
    removed = max(_where_written(cluster, _Removal(WEB_SESSIONS.name, tuple(sorted(after))))) if after else 0
    return SelectionChange(tuple(sorted(after - before)), tuple(sorted(before - after)), removed)


@dataclass(frozen=True)
class _Removal:
    """A call that removes the rows of all other teams from a table, waits, and returns their number."""

    table: str
    team_ids: tuple[int, ...]
    retryable = True

    def __call__(self, client: "Client") -> int:
        parameters = {"team_ids": self.team_ids}
        condition = "team_id NOT IN %(team_ids)s"
        ((count,),) = client.execute(f"SELECT count() FROM {quoted(self.table)} WHERE {condition}", parameters)  # noqa: S608 - a name of the schema
        if count:
            # On every replica, so that the next call counts zero rows on any host.
            client.execute(
                f"ALTER TABLE {quoted(self.table)} DELETE WHERE {condition}", parameters, settings={"mutations_sync": 2}
            )
        return int(count)


def _where_written(cluster: ClickhouseCluster, call: Insert | _Removal) -> list[int]:
    """Call one host if the tables are replicated, otherwise every host."""
    table = WEB_PRE_AGGREGATED_TEAMS.name
    return list(cluster.map_write_hosts(table, call, timeout_seconds=REMOVAL_TIMEOUT_SECONDS).result().values())
