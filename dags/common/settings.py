"""The environment variables of the project: typed, validated together, read once on first use.

Nothing else in the project reads the environment.
"""

from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge, Le, MinLen
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic.fields import FieldInfo
from pydantic.functional_validators import ModelWrapValidatorHandler
from pydantic_settings import BaseSettings, SettingsConfigDict

CloudDeployment = Literal["US", "EU", "DEV"]
Port = Annotated[int, Field(ge=1, le=65535)]
Identifier = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

# Defaults of variables that are not set when DEBUG=1: the values of the embedded services.
LOCAL_DEFAULTS: dict[str, Any] = {
    "dagster_webserver_url": "http://127.0.0.1:3000",
    "clickhouse_cluster": "local",
    "object_storage_endpoint": "http://127.0.0.1:19100",
    "object_storage_access_key_id": "local",
    "object_storage_secret_access_key": SecretStr("local-secret"),
    "visitor_hash_key": SecretStr("local-visitor-hash-key"),
}

# A production deployment without these would fail later, in the middle of a run.
REQUIRED_IN_PRODUCTION = (
    "slack_token",
    "clickhouse_password",
    "object_storage_access_key_id",
    "object_storage_secret_access_key",
    "postgres_password",
    "visitor_hash_key",
)

PATTERN_MEANINGS = {
    r"^[A-Za-z_][A-Za-z0-9_]*$": "letters, digits and underscores, not starting with a digit",
    r"^[A-Za-z0-9_-]+$": "letters, digits, underscores and hyphens",
    r"^[A-Za-z0-9.-]+(:[0-9]+)?$": "a host name with an optional port, such as dagster.example.com, without https://",
    r"^https?://[^/@\s]+/?$": "an address such as http://127.0.0.1:19100, without a path or credentials",
    r"^[0-9A-Fa-f:./, ]*$": "addresses and networks separated by commas, such as 203.0.113.5, 198.51.100.0/24",
    r"^[#CG]\S+$": "a channel such as #alerts, or a channel id such as C0123456789",
}

# Types of pydantic errors in plain words, since pydantic's messages are for programmers.
PROBLEM_MEANINGS = {
    "bool_parsing": "is not a boolean",
    "greater_than_equal": "is too small",
    "int_parsing": "is not a whole number",
    "less_than_equal": "is too large",
    "literal_error": "is not a known value",
    "string_pattern_mismatch": "does not have the right format",
    "string_too_short": "is too short",
}


class SettingsError(Exception):
    """An invalid environment. The message lists every problem, and never the value of a variable."""


class Settings(BaseSettings):
    """The environment of this process. A field's variable is its name in upper case.

    Raises SettingsError, with every problem, when the environment is invalid. No `.env` file is read.
    """

    # No value may reach an error message: any of them may be a secret in the wrong variable.
    model_config = SettingsConfigDict(
        env_file=None, env_ignore_empty=True, hide_input_in_errors=True, validate_default=True, frozen=True
    )

    # These two come first: the validation of later fields reads them.
    debug: bool = Field(default=False, description="1 on a laptop: embedded services, no message leaves the machine.")
    cloud_deployment: CloudDeployment | None = Field(
        default=None, description="The production region. Alerts are sent only when it is set."
    )

    dagster_domain: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9.-]+(:[0-9]+)?$", description="Host used in links to a run."
    )
    dagster_default_slack_alerts_channel: str = Field(
        default="#alerts-data-platform",
        pattern=r"^[#CG]\S+$",
        description="Slack channel of alerts without a known owner.",
    )
    dagster_webserver_url: str | None = Field(
        default=None,
        pattern=r"^https?://[^/@\s]+/?$",
        description="Address of the webserver, which the alert router asks for code locations that fail to load; "
        "optional.",
    )
    slack_token: SecretStr | None = Field(default=None, description="Bot token that posts to Slack.")

    clickhouse_host: str = Field(default="127.0.0.1", min_length=1, description="Any ClickHouse host of the cluster.")
    clickhouse_port: Port = Field(
        default=19000,
        description="Its native-protocol port. Embedded node number i listens on this port plus i.",
    )
    clickhouse_user: str = Field(default="default", min_length=1, description="ClickHouse user.")
    clickhouse_password: SecretStr = Field(default=SecretStr(""), description="Password of the ClickHouse user.")
    clickhouse_database: Identifier = Field(default="default", description="Database that holds the project's tables.")
    clickhouse_cluster: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9_-]+$",
        description="Name in system.clusters whose hosts are used. Without it, the one configured host is used.",
    )
    clickhouse_secure: bool = Field(default=False, description="1 for TLS on ClickHouse connections.")

    object_storage_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/@\s]+/?$",
        description="Address of an S3-compatible store. Without it, Amazon S3 is used.",
    )
    object_storage_region: str = Field(
        default="us-east-1", pattern=r"^[A-Za-z0-9_-]+$", description="Region of the bucket."
    )
    object_storage_access_key_id: str | None = Field(default=None, description="Access key id for the bucket.")
    object_storage_secret_access_key: SecretStr | None = Field(
        default=None, description="Secret access key for the bucket."
    )
    object_storage_bucket: str = Field(
        default="analytics", min_length=3, description="Bucket that holds stored asset values."
    )

    postgres_host: str = Field(default="127.0.0.1", min_length=1, description="Postgres host.")
    postgres_port: Port = Field(default=15432, description="Postgres port.")
    postgres_user: str = Field(default="postgres", min_length=1, description="Postgres user.")
    postgres_password: SecretStr = Field(default=SecretStr(""), description="Password of the Postgres user.")
    postgres_database: str = Field(default="analytics", min_length=1, description="Postgres database.")

    open_exchange_rates_app_id: SecretStr | None = Field(
        default=None,
        description="Open Exchange Rates app id. Without it, the European Central Bank's rates are used.",
    )
    visitor_hash_key: SecretStr | None = Field(
        default=None,
        min_length=16,
        description="Key of the hash that identifies visitors of access logs. Another key makes every visitor new.",
    )
    access_log_count_redirects: bool = Field(
        default=False, description="1 to count answers of 3xx as page views. 304 always counts."
    )
    access_log_count_partial_answers: bool = Field(
        default=False, description="1 to count answers of 206, parts of a file, as page views."
    )
    access_log_count_api_paths: bool = Field(
        default=False, description="1 to count requests of /api and the paths under it as page views."
    )
    access_log_count_data_files: bool = Field(
        default=False, description="1 to count paths that end in .xml, .json, .rss or .atom as page views."
    )
    access_log_trusted_proxies: str = Field(
        default="",
        pattern=r"^[0-9A-Fa-f:./, ]*$",
        description="Addresses and networks of the proxies whose X-Forwarded-For is believed, separated by commas. "
        "Without them, every server that logs the header is believed.",
    )
    dagster_web_preaggregated_max_partitions_per_run: int = Field(
        default=14, ge=1, le=366, description="Maximum number of partitions in one run of a backfill of the web tables."
    )

    @field_validator("*", mode="before")
    @classmethod
    def _local_default_or_required(cls, value: Any, info: ValidationInfo) -> Any:
        name = info.field_name or ""
        if value is None and info.data.get("debug"):
            return LOCAL_DEFAULTS.get(name)
        if info.data.get("cloud_deployment") and name in REQUIRED_IN_PRODUCTION and not _plain(value):
            raise ValueError("is not set, and is required when CLOUD_DEPLOYMENT is set")
        return value

    @field_validator("cloud_deployment", mode="after")
    @classmethod
    def _not_both(cls, value: CloudDeployment | None, info: ValidationInfo) -> CloudDeployment | None:
        if value is not None and info.data.get("debug"):
            raise ValueError("is set together with DEBUG: unset one, DEBUG is for a laptop only")
        return value

    @model_validator(mode="wrap")
    @classmethod
    def _one_error(cls, data: Any, handler: ModelWrapValidatorHandler["Settings"]) -> "Settings":
        try:
            return handler(data)
        except ValidationError as error:
            problems = [_problem(str(one["loc"][0]), one["type"], one["msg"]) for one in error.errors()]
        # Outside the handler, so that pydantic's error, which keeps the values, is not chained to this one.
        raise SettingsError("The environment is not valid:\n" + "\n".join(f"- {problem}" for problem in problems))


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the settings of this process, read from the environment on first use.

    Raises SettingsError, with every problem, when the environment is invalid. Tests that change the environment call
    `get_settings.cache_clear()`.
    """
    return Settings()


def _plain(value: object) -> object:
    return value.get_secret_value() if isinstance(value, SecretStr) else value


def _problem(name: str, kind: str, message: str) -> str:
    variable = name.upper()
    field = Settings.model_fields.get(name)
    if field is None:
        return f"{variable} is not a variable of this project."
    if kind == "value_error":
        return f"{variable} {message.removeprefix('Value error, ')}. Valid: {_valid_values(field)}."
    return f"{variable} {PROBLEM_MEANINGS.get(kind, 'is not valid')}. Valid: {_valid_values(field)}."


def _valid_values(field: FieldInfo) -> str:
    types = [one for one in (get_args(field.annotation) or (field.annotation,)) if one is not type(None)]
    if bool in types:
        return "1 or 0"
    if int in types:
        lowest = next(rule.ge for rule in field.metadata if isinstance(rule, Ge))
        highest = next(rule.le for rule in field.metadata if isinstance(rule, Le))
        return f"a whole number from {lowest} to {highest}"
    pattern = next((rule.pattern for rule in field.metadata if getattr(rule, "pattern", None)), None)
    if pattern is not None:
        return PATTERN_MEANINGS[pattern]
    options = [option for one in types for option in ([one] if isinstance(one, str) else get_args(one))]
    if options:
        return ", ".join(map(str, options)) + ", or not set"
    if SecretStr in types:
        return "a secret"
    shortest = next((rule.min_length for rule in field.metadata if isinstance(rule, MinLen)), 1)
    return "text" if shortest == 1 else f"text of at least {shortest} characters"
