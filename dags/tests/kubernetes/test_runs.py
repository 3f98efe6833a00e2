"""Runs on Kubernetes from the web server to the tables: launcher and executor on the loopback API, with Postgres.

The server validates every object by the strict schemas of Kubernetes.
"""

import contextlib
import datetime as dt
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from dagster import DagsterRunStatus

from dags.common.kubernetes import STEPS_CONFIG
from dags.local.pools import record_pool_limits
from dags.tests.conftest import CREDENTIALS
from dags.tests.kubernetes import site
from dags.tests.kubernetes.server import KubernetesServer
from dags.tests.kubernetes.site import Site
from dags.tests.run_watch import watch
from dags.tests.web_preaggregated.events import DAY, Event, Numbers, Web, at
from dags.tests.webserver import START_SECONDS
from dags.web_preaggregated.assets import POOL

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client

RUN_SECONDS = 150
BACKFILL_SECONDS = 600
DAILY_KEYS = ["web_sessions_daily"]
DAYS = [DAY + dt.timedelta(days=n) for n in range(10)]
DAYS_PER_RUN = 2
# The only requests, which a Role must allow.
REQUESTS = {("create", "jobs"), ("get", "jobs/status")}


@contextlib.contextmanager
def web_analytics(
    tmp_path: Path, dsn: str, kubernetes: KubernetesServer, web: Web, environment: dict[str, str]
) -> Iterator[Site]:
    """Yield a site with the project's web analytics, its own limits, and a pod for each step."""
    (host,) = web.cluster.hosts
    known = {
        "CLICKHOUSE_PORT": str(host.port),
        "CLICKHOUSE_DATABASE": web.cluster.database,
        "DAGSTER_WEB_PREAGGREGATED_MAX_PARTITIONS_PER_RUN": str(DAYS_PER_RUN),
        # Also for the runs of the backfill, which carry no tags of a job.
        "DAGSTER_CLI_API_GRPC_CONTAINER_CONTEXT": json.dumps({"k8s": {"run_k8s_config": STEPS_CONFIG}}),
    }
    target = ["-m", "dags.tests.kubernetes.stepwise_location"]
    with site.running(tmp_path, dsn, kubernetes, "web_analytics", target, environment={**known, **environment}) as made:
        record_pool_limits(made.instance, [POOL])
        yield made


@pytest.mark.slow
@pytest.mark.timeout(START_SECONDS + RUN_SECONDS + BACKFILL_SECONDS)
def test_a_day_and_a_backfill_of_ten_are_computed_in_pods_one_run_at_a_time(
    tmp_path: Path,
    postgres_dsn: str,
    kubernetes: KubernetesServer,
    web: Web,
    s3_endpoint: str,
    s3_bucket: str,
    s3_client: "S3Client",
) -> None:
    web.add(*(Event(at("10:00:00", day=n), f"session {n}") for n in range(len(DAYS))))
    storage = {
        "OBJECT_STORAGE_ENDPOINT": s3_endpoint,
        "OBJECT_STORAGE_BUCKET": s3_bucket,
        "OBJECT_STORAGE_SECRET_ACCESS_KEY": CREDENTIALS.s3_secret_access_key,
    }
    with web_analytics(tmp_path, postgres_dsn, kubernetes, web, storage) as made:
        first = made.launch("web_analytics_daily_job", tags={"dagster/partition": str(DAY)})
        made.wait_for_status(first, DagsterRunStatus.SUCCESS, RUN_SECONDS)
        assert web.totals(DAY) == Numbers(1, 1, 1, 1, 0)
        assert s3_client.list_objects_v2(Bucket=s3_bucket)["KeyCount"] == 2

        made.server.backfill(DAILY_KEYS, list(map(str, DAYS)))
        seen = watch(made.instance, 1 + len(DAYS) // DAYS_PER_RUN, BACKFILL_SECONDS)
    assert set(seen.statuses.values()) == {DagsterRunStatus.SUCCESS}, seen.statuses
    assert seen.waited, "no run was ever queued: the test proves nothing"
    assert seen.most_at_once == 1
    assert not seen.overlap, seen.spans
    assert [web.totals(day) for day in DAYS] == [Numbers(1, 1, 1, 1, 0)] * len(DAYS)
    jobs = components(kubernetes)
    assert jobs["run_worker"] == len(seen.statuses)
    # The tables in each run, and in the first one the two exports.
    assert jobs["step_worker"] >= len(seen.statuses) + 2
    assert len(kubernetes.cluster.find("jobs", {}, {})) == sum(jobs.values())
    assert kubernetes.cluster.refusals == []
    assert kubernetes.requests == REQUESTS


def components(kubernetes: KubernetesServer) -> Counter[str]:
    """Return how many Jobs succeeded, by component."""
    succeeded = kubernetes.cluster.find("jobs", {"status.succeeded": 1}, {})
    return Counter(job["metadata"]["labels"]["app.kubernetes.io/component"] for job in succeeded)
