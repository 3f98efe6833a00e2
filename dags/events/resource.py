"""The Dagster resource `event_source`: where events come from, and the key of the visitors' hash."""

from dataclasses import dataclass

import dagster as dg
from pydantic import SecretStr

from dags.common.clickhouse.object_storage import ObjectStorage, object_storage_from_settings
from dags.common.settings import Settings, SettingsError, get_settings


@dataclass(frozen=True)
class EventSource:
    """A bucket as ClickHouse reaches it, and the key of the hash that stands for a visitor of access logs."""

    storage: ObjectStorage
    visitor_hash_key: SecretStr


def event_source_from_settings(settings: Settings) -> EventSource:
    """As the environment says. Raises SettingsError without a key, and what object_storage_from_settings raises."""
    if settings.visitor_hash_key is None:
        raise SettingsError("VISITOR_HASH_KEY is not set: visitors of access logs are known by a hash with this key.")
    return EventSource(object_storage_from_settings(settings), settings.visitor_hash_key)


class EventSourceResource(dg.ConfigurableResource["EventSourceResource"]):
    """The bucket of event objects, and the key of the hash that stands for a visitor."""

    def source(self) -> EventSource:
        """Return the source that the settings name. Raises as event_source_from_settings does."""
        return event_source_from_settings(get_settings())
