"""Object storage as the ClickHouse server reads and writes it: the arguments of the table function `s3`.

The server replaces the secret with [HIDDEN] in its logs, and in errors of statements that it could parse. This module
replaces it in all other errors, so that Dagster's event log never contains it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from dags.common.clickhouse.ddl import literal
from dags.common.clickhouse.query import Query, Rows
from dags.common.settings import Settings

if TYPE_CHECKING:
    from clickhouse_driver import Client

HIDDEN = "[HIDDEN]"
# The first arguments of the table function `s3` in the statement of an ObjectQuery.
OBJECT = "%(object_url)s, %(object_access_key_id)s, %(object_secret_access_key)s"


class NoObjectStorageKeysError(Exception):
    """The environment has no keys for object storage."""


@dataclass(frozen=True)
class ObjectStorage:
    """A bucket and its access keys."""

    bucket: str
    bucket_url: str
    access_key_id: str
    secret_access_key: SecretStr

    def parameters(self, key: str) -> dict[str, str]:
        """Return the parameters that fill OBJECT for the object of this key."""
        return {
            "object_url": f"{self.bucket_url}/{key}",
            "object_access_key_id": self.access_key_id,
            "object_secret_access_key": self.secret_access_key.get_secret_value(),
        }


def object_storage_from_settings(settings: Settings) -> ObjectStorage:
    """Return the object storage that the environment names. Raises NoObjectStorageKeysError without keys."""
    access_key_id, secret = settings.object_storage_access_key_id, settings.object_storage_secret_access_key
    if access_key_id is None or secret is None:
        raise NoObjectStorageKeysError(
            "ClickHouse needs keys to reach object storage: set OBJECT_STORAGE_ACCESS_KEY_ID and "
            "OBJECT_STORAGE_SECRET_ACCESS_KEY."
        )
    bucket = settings.object_storage_bucket
    if settings.object_storage_endpoint is None:
        bucket_url = f"https://{bucket}.s3.{settings.object_storage_region}.amazonaws.com"
    else:
        bucket_url = f"{settings.object_storage_endpoint.rstrip('/')}/{bucket}"
    return ObjectStorage(bucket, bucket_url, access_key_id, secret)


@dataclass(frozen=True)
class ObjectQuery:
    """One statement that names an object as `s3({OBJECT}, 'Parquet')`; the result is a list of rows.

    Neither its text nor its errors contain the secret. `retryable` and `external_tables` are as in a Query.
    """

    statement: str
    storage: ObjectStorage
    key: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    retryable: bool | None = None
    external_tables: Sequence[Mapping[str, Any]] = field(default=(), repr=False)

    def __call__(self, client: "Client") -> Rows:
        """Run the statement on the client."""
        from clickhouse_driver import errors

        parameters = {**self.parameters, **self.storage.parameters(self.key)}
        try:
            query = Query(self.statement, parameters, self.settings, external_tables=self.external_tables)
            return query(client)
        except errors.ServerException as error:
            error.message = self._without_secret(error.message)
            error.args = (error.message,)
            raise

    def _without_secret(self, text: str) -> str:
        secret = self.storage.secret_access_key.get_secret_value()
        # Both as it is, and as it is escaped in a statement.
        return text.replace(secret, HIDDEN).replace(literal(secret)[1:-1], HIDDEN)
