"""The Dagster resources that every location shares. They read the settings when a run starts them, never before.

Secrets stay inside the values made here: none is resource config, so none reaches the UI, run config or the event log.
What a resource does without Dagster lives elsewhere, such as `dags/common/clickhouse/`.
"""

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.discovery import cluster_from_settings
from dags.common.clickhouse.query_tags import QueryTags
from dags.common.owners import OWNER_TAG
from dags.common.settings import Settings, get_settings

if TYPE_CHECKING:
    import psycopg2.extensions
    from slack_sdk import WebClient
    from types_boto3_s3 import S3Client

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
STATEMENT_TIMEOUT_SECONDS = 300


class MissingAssetValueError(Exception):
    """An asset is asked for a value that was never stored."""


class UnstorableAssetValueError(Exception):
    """An asset returned what the JSON IO manager cannot store."""


@dataclass(frozen=True)
class Postgres:
    """Where Postgres is, and how to sign in. Opens a connection for each use."""

    host: str
    port: int
    user: str
    password: SecretStr
    database: str

    @contextlib.contextmanager
    def connection(self) -> "Iterator[psycopg2.extensions.connection]":
        """One connection and one transaction: committed at the end, rolled back after an error, then closed.

        Raises psycopg2.OperationalError when the server cannot be reached, and psycopg2.errors.QueryCanceled when a
        statement takes longer than STATEMENT_TIMEOUT_SECONDS.
        """
        import psycopg2

        connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=self.user,
            password=self.password.get_secret_value(),
            dbname=self.database,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            application_name="analytics-platform",
            options=f"-c statement_timeout={STATEMENT_TIMEOUT_SECONDS * 1000}",
        )
        try:
            with connection:
                yield connection
        finally:
            connection.close()


def make_postgres(settings: Settings) -> Postgres:
    """Postgres as the environment names it. Connects on use only."""
    return Postgres(
        host=settings.postgres_host,
        port=settings.postgres_port,
        user=settings.postgres_user,
        password=settings.postgres_password,
        database=settings.postgres_database,
    )


def make_s3(settings: Settings) -> "S3Client":
    """A boto3 client for the configured object storage, with timeouts and retries. Connects on use only."""
    import boto3
    from botocore.config import Config

    secret = settings.object_storage_secret_access_key
    return boto3.client(
        "s3",
        endpoint_url=settings.object_storage_endpoint,
        region_name=settings.object_storage_region,
        aws_access_key_id=settings.object_storage_access_key_id,
        aws_secret_access_key=None if secret is None else secret.get_secret_value(),
        config=Config(
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            read_timeout=READ_TIMEOUT_SECONDS,
            retries={"mode": "standard", "total_max_attempts": 4},
            # A store at a bare address has no host name for each bucket.
            s3={"addressing_style": "path" if settings.object_storage_endpoint else "auto"},
        ),
    )


def make_slack(settings: Settings) -> "WebClient":
    """Slack: the real client in production; anywhere else one that only logs what it would send."""
    if settings.cloud_deployment is None or settings.slack_token is None:
        return _logging_slack()

    from dagster_slack import SlackResource

    return SlackResource(token=settings.slack_token.get_secret_value()).get_client()


def _logging_slack() -> "WebClient":
    from slack_sdk import WebClient
    from slack_sdk.web import SlackResponse

    class LoggingSlackClient(WebClient):
        """Sends nothing. Every method of the client ends in `api_call`, which logs instead."""

        def api_call(self, api_method: str, **arguments: Any) -> SlackResponse:
            message: Mapping[str, Any] = arguments.get("json") or arguments.get("params") or {}
            logger.info(
                "Slack is off here. Not sent: %s to %s: %s", api_method, message.get("channel"), message.get("text")
            )
            return SlackResponse(
                client=self,
                http_verb="POST",
                api_url=api_method,
                req_args={},
                data={"ok": True, "channel": message.get("channel"), "ts": "0.000000"},
                headers={},
                status_code=200,
            )

    return LoggingSlackClient()


class JsonObjectIOManager(dg.IOManager):
    """Stores asset values as JSON objects `s3://<bucket>/assets/<asset key path>[/<partition>].json`.

    A run of several partitions gives and gets a dict from partition key to value. A stored object is replaced as a
    whole, so a reader sees the old value or the new one.
    """

    def __init__(self, s3: "S3Client", bucket: str) -> None:
        self._s3 = s3
        self._bucket = bucket

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Stores the value of an asset. Raises UnstorableAssetValueError when JSON cannot hold it."""
        if not context.has_asset_partitions:
            uris = [self._put(context.asset_key, None, obj)]
        elif len(context.asset_partition_keys) == 1:
            uris = [self._put(context.asset_key, context.asset_partition_keys[0], obj)]
        else:
            values = _values_by_partition(context.asset_key, context.asset_partition_keys, obj)
            uris = [self._put(context.asset_key, partition, value) for partition, value in values.items()]
        context.add_output_metadata({"first_object": uris[0], "objects": len(uris)})

    def load_input(self, context: dg.InputContext) -> Any:
        """The stored value, or a dict of partition key to value when several partitions are asked for.

        Raises MissingAssetValueError when a value was never stored.
        """
        if not context.has_asset_partitions:
            return self._get(context.asset_key, None)
        partitions = context.asset_partition_keys
        if len(partitions) == 1:
            return self._get(context.asset_key, partitions[0])
        return {partition: self._get(context.asset_key, partition) for partition in partitions}

    def _put(self, asset_key: dg.AssetKey, partition: str | None, value: Any) -> str:
        try:
            body = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise UnstorableAssetValueError(
                f"{_named(asset_key, partition)} returned what JSON cannot hold: {error}. Return dicts with text keys, "
                "lists, text, finite numbers, booleans and None only."
            ) from error
        key = object_key(asset_key, partition)
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=body, ContentType="application/json")
        return f"s3://{self._bucket}/{key}"

    def _get(self, asset_key: dg.AssetKey, partition: str | None) -> Any:
        key = object_key(asset_key, partition)
        try:
            body = self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._s3.exceptions.NoSuchKey as error:
            raise MissingAssetValueError(
                f"{_named(asset_key, partition)} has no stored value: s3://{self._bucket}/{key} does not exist. "
                f"Materialize {_named(asset_key, partition)} first."
            ) from error
        return json.loads(body)


def object_key(asset_key: dg.AssetKey, partition: str | None) -> str:
    """The key of the object that holds an asset's value."""
    path = "/".join(quote(part, safe="") for part in asset_key.path)
    return f"assets/{path}.json" if partition is None else f"assets/{path}/{quote(partition, safe=':|')}.json"


def _named(asset_key: dg.AssetKey, partition: str | None) -> str:
    name = f"asset '{asset_key.to_user_string()}'"
    return name if partition is None else f"{name}, partition '{partition}',"


def _values_by_partition(asset_key: dg.AssetKey, partitions: Sequence[str], value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and set(value) == set(partitions):
        return value
    keys = f"the keys {sorted(map(str, value))}" if isinstance(value, dict) else f"a {type(value).__name__}"
    raise UnstorableAssetValueError(
        f"asset '{asset_key.to_user_string()}' ran for {len(partitions)} partitions and returned {keys}. "
        f"Return a dict with one value for each partition: {', '.join(partitions)}."
    )


def query_tags(context: dg.OpExecutionContext | dg.AssetExecutionContext) -> QueryTags:
    """The tags of every ClickHouse query of this step: `cluster.tagged(query_tags(context))`.

    The owner is that of the asset or op itself, and else of the run.
    """
    op_context = context.op_execution_context if isinstance(context, dg.AssetExecutionContext) else context
    tags_of_assets: list[Mapping[str, str]] = []
    step = op_context.op.name
    if op_context.has_assets_def:
        keys = sorted(op_context.selected_asset_keys)
        step = ",".join(key.to_user_string() for key in keys) or step
        tags_of_assets = [op_context.assets_def.tags_by_key.get(key, {}) for key in keys]
    sources: list[Mapping[str, Any]] = [*tags_of_assets, op_context.op.tags, op_context.run_tags]
    owner = next((str(tags[OWNER_TAG]) for tags in sources if OWNER_TAG in tags), None)
    return QueryTags(run_id=op_context.run_id, job=op_context.job_name, step=step, owner=owner)


@dg.resource(description="The ClickHouse cluster: calls on any host or on all hosts.")
def cluster(_context: dg.InitResourceContext) -> Iterator[ClickhouseCluster]:
    """A ClickhouseCluster, closed at the end of the run."""
    with cluster_from_settings(get_settings()) as value:
        yield value


@dg.resource(description="Object storage: a boto3 S3 client.")
def s3(_context: dg.InitResourceContext) -> "S3Client":
    """A boto3 S3 client."""
    return make_s3(get_settings())


@dg.resource(description="Postgres: opens connections.")
def postgres(_context: dg.InitResourceContext) -> Postgres:
    """A Postgres."""
    return make_postgres(get_settings())


@dg.resource(description="Slack: sends in production only, elsewhere logs what it would send.")
def slack(_context: dg.InitResourceContext) -> "WebClient":
    """A slack_sdk WebClient."""
    return make_slack(get_settings())


@dg.io_manager(required_resource_keys={"s3"}, description="Asset values as JSON in object storage.")
def json_io_manager(context: dg.InitResourceContext) -> JsonObjectIOManager:
    """A JsonObjectIOManager on the configured bucket."""
    return JsonObjectIOManager(context.resources.s3, get_settings().object_storage_bucket)
