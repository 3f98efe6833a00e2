"""The IO manager that stores asset values as JSON objects in S3."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import dagster as dg
from pydantic import Field

from dags.common.metadata import URI
from dags.common.resources import S3Resource
from dags.common.settings import get_settings

if TYPE_CHECKING:
    from types_boto3_s3 import S3Client


class MissingAssetValueError(Exception):
    """An asset value was requested that was never stored."""


class UnstorableAssetValueError(Exception):
    """An asset returned a value that the JSON IO manager cannot store."""


class JsonObjectIOManager(dg.ConfigurableIOManager):
    """Asset values as JSON objects `s3://<bucket>/assets/<asset key path>[/<partition>].json`.

    A run of several partitions returns and receives a dict from partition key to value. An object is replaced as a
    whole, so a reader sees either the old value or the new one.
    """

    s3: dg.ResourceDependency[S3Resource]
    bucket: str | None = Field(default=None, description="Bucket of the objects. Default: OBJECT_STORAGE_BUCKET.")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Store the value of an asset. Raises UnstorableAssetValueError for a value that JSON cannot hold."""
        values: Mapping[Any, Any]
        if not context.has_asset_partitions:
            values = {None: obj}
        elif len(context.asset_partition_keys) == 1:
            values = {context.asset_partition_keys[0]: obj}
        else:
            values = _values_by_partition(context.asset_key, context.asset_partition_keys, obj)
        client = self.s3.client()
        uris = [self._put(client, context.asset_key, partition, value) for partition, value in values.items()]
        metadata: dict[str, str | int] = {"first_object": uris[0], "objects": len(uris)}
        context.add_output_metadata(metadata | ({URI: uris[0]} if len(uris) == 1 else {}))

    def load_input(self, context: dg.InputContext) -> Any:
        """Return the stored value, or a dict from partition key to value for several partitions.

        Raises MissingAssetValueError when a value was never stored.
        """
        client = self.s3.client()
        if not context.has_asset_partitions:
            return self._get(client, context.asset_key, None)
        partitions = context.asset_partition_keys
        if len(partitions) == 1:
            return self._get(client, context.asset_key, partitions[0])
        return {partition: self._get(client, context.asset_key, partition) for partition in partitions}

    def _put(self, client: "S3Client", asset_key: dg.AssetKey, partition: str | None, value: Any) -> str:
        try:
            body = json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError) as error:
            raise UnstorableAssetValueError(
                f"{_named(asset_key, partition)} returned a value that JSON cannot hold: {error}. Return only dicts "
                "with text keys, lists, text, finite numbers, booleans and None."
            ) from error
        key = object_key(asset_key, partition)
        client.put_object(Bucket=self._bucket_name(), Key=key, Body=body, ContentType="application/json")
        return f"s3://{self._bucket_name()}/{key}"

    def _get(self, client: "S3Client", asset_key: dg.AssetKey, partition: str | None) -> Any:
        key = object_key(asset_key, partition)
        try:
            body = client.get_object(Bucket=self._bucket_name(), Key=key)["Body"].read()
        except client.exceptions.NoSuchKey as error:
            raise MissingAssetValueError(
                f"{_named(asset_key, partition)} has no stored value: s3://{self._bucket_name()}/{key} does not exist. "
                f"Materialize {_named(asset_key, partition)} first."
            ) from error
        return json.loads(body)

    def _bucket_name(self) -> str:
        return self.bucket or get_settings().object_storage_bucket


def object_key(asset_key: dg.AssetKey, partition: str | None) -> str:
    """Return the key of the object that holds an asset's value."""
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
