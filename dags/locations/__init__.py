"""One module for each team, which lists what the team registers; here, what all locations share.

A location holds no logic, and exposes `defs`. How to add one is in docs/.
"""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import dagster as dg

from dags.common.json_io_manager import JsonObjectIOManager
from dags.common.owners import OWNER_TAG, JobOwners, owned_by, owner_tags
from dags.common.resources import ClickhouseResource, PostgresResource, S3Resource, SlackResource

s3 = S3Resource()
resources: Mapping[str, Any] = {
    "clickhouse": ClickhouseResource(),
    "json_io_manager": JsonObjectIOManager(s3=s3),
    "postgres": PostgresResource(),
    "s3": s3,
    "slack": SlackResource(),
}


def build_definitions(
    *,
    owner: JobOwners,
    assets: Iterable[dg.AssetsDefinition | dg.AssetSpec] = (),
    asset_checks: Iterable[dg.AssetsDefinition] = (),
    resources: Mapping[str, Any] = resources,
    **definitions: Any,
) -> dg.Definitions:
    """Return the definitions of a location, each asset and asset check without an owner given to the location's owner.

    Resources are the shared ones; a test passes its own. `definitions` are the other arguments of
    `dagster.Definitions`.
    """
    checks_owned = [_with_owned_checks(checks, owner) for checks in asset_checks]
    assets_owned = [
        _with_owned_checks(asset, owner) if isinstance(asset, dg.AssetsDefinition) else asset
        for asset in dg.map_asset_specs(partial(_with_owner, owner=owner), assets)
    ]
    return dg.Definitions(
        assets=assets_owned,
        asset_checks=checks_owned,
        resources=resources,
        metadata={OWNER_TAG: owner.value},
        **definitions,
    )


def _with_owner(spec: dg.AssetSpec, owner: JobOwners) -> dg.AssetSpec:
    return spec if OWNER_TAG in spec.tags else spec.merge_attributes(**owned_by(owner))


def _with_owned_checks(definition: dg.AssetsDefinition, owner: JobOwners) -> dg.AssetsDefinition:
    # A check has neither tags nor owners in Dagster: its metadata names the owner.
    metadata: dict[dg.AssetKey | dg.AssetCheckKey, dict[str, Any]] = {
        spec.key: {**(spec.metadata or {}), **owner_tags(owner)}
        for spec in definition.check_specs
        if OWNER_TAG not in (spec.metadata or {})
    }
    owned = definition.with_attributes(metadata_by_key=metadata)
    return owned.coerce_to_checks_def() if isinstance(definition, dg.AssetChecksDefinition) else owned
