"""Shared resources that hand out what a test gives them, in place of what the environment names."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import dagster as dg

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.postgres import Postgres
from dags.common.resources import ClickhouseResource, PostgresResource, S3Resource, SlackResource

if TYPE_CHECKING:
    from slack_sdk import WebClient
    from types_boto3_s3 import S3Client


def clickhouse_resource(cluster: ClickhouseCluster) -> ClickhouseResource:
    class GivenClickhouse(ClickhouseResource):
        @contextlib.contextmanager
        def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Self]:
            del context
            # Not closed at the end of the run: the cluster is the test's.
            self._connected = cluster
            yield self

    return GivenClickhouse()


def s3_resource(client: "S3Client") -> S3Resource:
    class GivenS3(S3Resource):
        def client(self) -> "S3Client":
            return client

    return GivenS3()


def postgres_resource(postgres: Postgres) -> PostgresResource:
    class GivenPostgres(PostgresResource):
        def client(self) -> Postgres:
            return postgres

    return GivenPostgres()


def slack_resource(client: "WebClient") -> SlackResource:
    class GivenSlack(SlackResource):
        def client(self) -> "WebClient":
            return client

    return GivenSlack()
