"""The Dagster resource `event_source`: the bucket of event objects, and how access logs are read."""

from dataclasses import dataclass, field

import dagster as dg
from pydantic import Field, SecretStr

from dags.common.clickhouse.object_storage import ObjectStorage, object_storage_from_settings
from dags.common.settings import Settings, SettingsError, get_settings
from dags.events.access_logs import LogRules, log_rules_from_settings


@dataclass(frozen=True)
class EventSource:
    """The bucket as ClickHouse reaches it, and how access logs are read: the key of the visitor hash, and the rules."""

    storage: ObjectStorage
    visitor_hash_key: SecretStr
    log_rules: LogRules = field(default_factory=LogRules)


def event_source_from_settings(settings: Settings) -> EventSource:
    """Return the source of the settings. Raises SettingsError or NoObjectStorageKeysError when a value is missing."""
    if settings.visitor_hash_key is None:
        raise SettingsError("VISITOR_HASH_KEY is not set. It is the key of the hash of access log visitors.")
    return EventSource(
        object_storage_from_settings(settings), settings.visitor_hash_key, log_rules_from_settings(settings)
    )


class EventSourceResource(dg.ConfigurableResource["EventSourceResource"]):
    """The bucket of event objects, and the key of the visitor hash, which comes from the settings only."""

    bucket: str | None = Field(default=None, description="Bucket of the objects. Default: OBJECT_STORAGE_BUCKET.")

    def source(self) -> EventSource:
        """Return the source. Raises as event_source_from_settings does."""
        settings = get_settings()
        if self.bucket is not None:
            settings = settings.model_copy(update={"object_storage_bucket": self.bucket})
        return event_source_from_settings(settings)
