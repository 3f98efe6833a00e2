"""Find the hosts of a ClickHouse cluster: from the server's own list of clusters, or from the settings."""

import dataclasses
import logging
from collections.abc import Sequence

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.errors import UnknownClusterError, one_line
from dags.common.clickhouse.hosts import DATA_ROLE, UNKNOWN_ROLE, Access, Host
from dags.common.clickhouse.pool import CONNECT_TIMEOUT_SECONDS
from dags.common.clickhouse.query import Query
from dags.common.clickhouse.retry import RetryPolicy
from dags.common.settings import Settings

logger = logging.getLogger(__name__)

HOSTS_STATEMENT = """
SELECT host_name, port, shard_num, replica_num FROM system.clusters
WHERE cluster = %(cluster)s ORDER BY shard_num, replica_num
"""
ROLE_STATEMENT = "SELECT substitution FROM system.macros WHERE macro = 'role'"


def connect(access: Access, address: str, port: int, cluster_name: str | None = None) -> ClickhouseCluster:
    """Return the cluster of that name as the server at `address:port` lists it; without a name, that one server.

    Queries each host for its role. Raises UnknownClusterError when the server has no cluster of that name, and what
    any_host raises when the server does not answer.
    """
    seed = ClickhouseCluster([Host(address, port)], access)
    if cluster_name is None:
        return seed
    with seed:
        rows = seed.any_host(Query(HOSTS_STATEMENT, {"cluster": cluster_name})).result()
        if not rows:
            known = seed.any_host(Query("SELECT DISTINCT cluster FROM system.clusters ORDER BY cluster")).result()
            raise UnknownClusterError(
                f"ClickHouse at {address}:{port} knows no cluster '{cluster_name}', only: "
                f"{', '.join(name for (name,) in known) or 'none'}. Set CLICKHOUSE_CLUSTER to one of them, or unset it "
                "to use this one host."
            )
    # A server that is listed twice in the cluster is called once.
    hosts = {(name, host_port): Host(name, host_port, shard, replica) for name, host_port, shard, replica in rows[::-1]}
    ordered = sorted(hosts.values(), key=lambda host: (host.shard, host.replica))
    return ClickhouseCluster(_with_roles(ordered, access), access, name=cluster_name)


def access_from_settings(settings: Settings) -> Access:
    """Return the credentials and the database that the environment names."""
    return Access(
        user=settings.clickhouse_user,
        password=settings.clickhouse_password,
        database=settings.clickhouse_database,
        secure=settings.clickhouse_secure,
    )


def cluster_from_settings(settings: Settings) -> ClickhouseCluster:
    """Return the cluster that the environment names. Raises as `connect` does."""
    access = access_from_settings(settings)
    return connect(access, settings.clickhouse_host, settings.clickhouse_port, settings.clickhouse_cluster)


def _with_roles(hosts: Sequence[Host], access: Access) -> list[Host]:
    # One attempt each: a host that is down must not delay every run. The next run asks it again.
    with ClickhouseCluster(hosts, access, policy=RetryPolicy(attempts=1)) as cluster:
        answers, failures = cluster.map_all_hosts(
            Query(ROLE_STATEMENT), timeout_seconds=CONNECT_TIMEOUT_SECONDS
        ).results_and_failures()
    for host, error in failures.items():
        logger.warning("The role of ClickHouse host %s is unknown: %s", host, one_line(error))
    roles = {host: next((str(role) for (role,) in rows), DATA_ROLE) for host, rows in answers.items()}
    return [dataclasses.replace(host, role=roles.get(host, UNKNOWN_ROLE)) for host in hosts]
