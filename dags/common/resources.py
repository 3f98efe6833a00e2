"""The Dagster resources that every location shares: ClickHouse, S3 and Postgres.

A field that is not set takes its value from the settings, which are read when a run starts. Secrets come from the
settings only: no field holds one, so none reaches the UI, run config or the event log.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Self

import dagster as dg
from pydantic import Field, PrivateAttr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.discovery import cluster_from_settings
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.owners import OWNER_TAG
from dags.common.postgres import Postgres, make_postgres
from dags.common.s3 import make_s3
from dags.common.settings import Settings, get_settings
from dags.common.slack import make_slack

if TYPE_CHECKING:
    from slack_sdk import WebClient
    from types_boto3_s3 import S3Client

StepContext = dg.OpExecutionContext | dg.AssetExecutionContext | dg.AssetCheckExecutionContext


class ClickhouseResource(dg.ConfigurableResource["ClickhouseResource"]):
    """The ClickHouse cluster. One connection pool per run, closed at the end of the run."""

    host: str | None = Field(default=None, description="Any host of the cluster. Default: CLICKHOUSE_HOST.")
    port: int | None = Field(
        default=None, ge=1, le=65535, description="Native-protocol port of that host. Default: CLICKHOUSE_PORT."
    )
    user: str | None = Field(default=None, description="User. Default: CLICKHOUSE_USER.")
    database: str | None = Field(default=None, description="Database of the tables. Default: CLICKHOUSE_DATABASE.")
    cluster_name: str | None = Field(
        default=None, description="Name in system.clusters whose hosts are used. Default: CLICKHOUSE_CLUSTER."
    )
    secure: bool | None = Field(default=None, description="Use TLS. Default: CLICKHOUSE_SECURE.")
    _connected: ClickhouseCluster | None = PrivateAttr(default=None)

    def cluster(self, context: StepContext) -> ClickhouseCluster:
        """Return the cluster, with run, job, step and owner of this step as `log_comment` of every query."""
        return self.tagged(query_tags(context))

    def tagged(self, tags: QueryTags) -> ClickhouseCluster:
        """Return the cluster with these tags as `log_comment` of every query, for code that is not a step."""
        if self._connected is None:
            raise RuntimeError("This ClickHouse resource is not connected. Dagster connects it when a run starts.")
        return self._connected.tagged(tags)

    @contextlib.contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Self]:
        """Connect for the time of a run or a tick."""
        del context
        settings = _overridden(
            get_settings(),
            clickhouse_host=self.host,
            clickhouse_port=self.port,
            clickhouse_user=self.user,
            clickhouse_database=self.database,
            clickhouse_cluster=self.cluster_name,
            clickhouse_secure=self.secure,
        )
        with cluster_from_settings(settings) as self._connected:
            yield self


class S3Resource(dg.ConfigurableResource["S3Resource"]):
    """The object storage, as a boto3 S3 client."""

    endpoint: str | None = Field(
        default=None, description="Address of an S3-compatible store. Default: OBJECT_STORAGE_ENDPOINT."
    )
    region: str | None = Field(default=None, description="Region of the bucket. Default: OBJECT_STORAGE_REGION.")

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Stop the step before it works when the environment is wrong. Raises SettingsError."""
        del context
        get_settings()

    def client(self) -> "S3Client":
        """Return a new client. It connects on first use."""
        settings = get_settings()
        return make_s3(_overridden(settings, object_storage_endpoint=self.endpoint, object_storage_region=self.region))


class PostgresResource(dg.ConfigurableResource["PostgresResource"]):
    """The Postgres database of the platform. Opens a connection for each use."""

    host: str | None = Field(default=None, description="Host. Default: POSTGRES_HOST.")
    port: int | None = Field(default=None, ge=1, le=65535, description="Port. Default: POSTGRES_PORT.")
    user: str | None = Field(default=None, description="User. Default: POSTGRES_USER.")
    database: str | None = Field(default=None, description="Database. Default: POSTGRES_DATABASE.")

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Stop the step before it works when the environment is wrong. Raises SettingsError."""
        del context
        get_settings()

    def client(self) -> Postgres:
        """Return the client. It connects on each use."""
        return make_postgres(
            _overridden(
                get_settings(),
                postgres_host=self.host,
                postgres_port=self.port,
                postgres_user=self.user,
                postgres_database=self.database,
            )
        )


class SlackResource(dg.ConfigurableResource["SlackResource"]):
    """Slack. Sends in production with SLACK_TOKEN; elsewhere it logs what it would send."""

    def client(self) -> "WebClient":
        """Return a new client, which makes each call once."""
        return make_slack(get_settings())


def query_tags(context: StepContext) -> QueryTags:
    """Return the tags of every ClickHouse query of a step. The owner is that of the asset or op, else of the run."""
    op_context = context if isinstance(context, dg.OpExecutionContext) else context.op_execution_context
    tags_of_assets: list[Mapping[str, str]] = []
    step = op_context.op.name
    if op_context.has_assets_def:
        keys = sorted(op_context.selected_asset_keys)
        step = ",".join(key.to_user_string() for key in keys) or step
        tags_of_assets = [op_context.assets_def.tags_by_key.get(key, {}) for key in keys]
    sources: list[Mapping[str, Any]] = [*tags_of_assets, op_context.op.tags, op_context.run_tags]
    owner = next((str(tags[OWNER_TAG]) for tags in sources if OWNER_TAG in tags), None)
    return QueryTags(run_id=op_context.run_id, job=op_context.job_name, step=step, owner=owner)


def _overridden(settings: Settings, **fields: object) -> Settings:
    """Return the settings with the given values in place of their own; None keeps a value."""
    return settings.model_copy(update={name: value for name, value in fields.items() if value is not None})
