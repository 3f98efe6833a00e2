import pytest
from pydantic import SecretStr

from dags.common.settings import Settings, SettingsError, _valid_values, get_settings

SECRET = "hunter2-secret"  # noqa: S105 - a test value
PRODUCTION = {
    "CLOUD_DEPLOYMENT": "EU",
    "SLACK_TOKEN": SECRET,
    "CLICKHOUSE_PASSWORD": SECRET,
    "OBJECT_STORAGE_ACCESS_KEY_ID": "id",
    "OBJECT_STORAGE_SECRET_ACCESS_KEY": SECRET,
    "POSTGRES_PASSWORD": SECRET,
    "VISITOR_HASH_KEY": f"{SECRET} and more",
}


def set_all(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def test_an_empty_environment_gives_the_documented_defaults() -> None:
    settings = Settings()
    assert (settings.debug, settings.cloud_deployment, settings.clickhouse_cluster) == (False, None, None)
    assert (settings.clickhouse_port, settings.postgres_port) == (19000, 15432)
    assert settings.object_storage_endpoint is None
    assert settings.dagster_web_preaggregated_max_partitions_per_run == 14


def test_debug_defaults_to_the_embedded_services(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "1")
    settings = Settings()
    assert settings.clickhouse_cluster == "local"
    assert settings.object_storage_endpoint == "http://127.0.0.1:19100"
    assert settings.object_storage_access_key_id == "local"
    assert settings.object_storage_secret_access_key == SecretStr("local-secret")


def test_debug_keeps_explicit_values(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {"DEBUG": "1", "OBJECT_STORAGE_ENDPOINT": "http://127.0.0.1:5", "CLICKHOUSE_PORT": "5"})
    settings = Settings()
    assert (settings.object_storage_endpoint, settings.clickhouse_port) == ("http://127.0.0.1:5", 5)


def test_production_gets_no_local_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, PRODUCTION)
    settings = Settings()
    assert (settings.clickhouse_cluster, settings.object_storage_endpoint) == (None, None)
    assert settings.slack_token == SecretStr(SECRET)


def test_every_problem_is_in_one_message_with_the_valid_values(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(
        monkeypatch,
        {
            "CLOUD_DEPLOYMENT": "MARS",
            "CLICKHOUSE_PORT": "tcp://10.0.0.1:9000",
            "POSTGRES_PORT": "70000",
            "CLICKHOUSE_DATABASE": "a-b",
            "DAGSTER_DOMAIN": "https://example.com",
            "DEBUG": "maybe",
        },
    )
    with pytest.raises(SettingsError) as caught:
        Settings()
    lines = str(caught.value).splitlines()[1:]
    wrong_format = "does not have the right format. Valid:"
    assert lines == [
        "- DEBUG is not a boolean. Valid: 1 or 0.",
        "- CLOUD_DEPLOYMENT is not a known value. Valid: US, EU, DEV, or not set.",
        f"- DAGSTER_DOMAIN {wrong_format} a host name with an optional port, such as dagster.example.com, without https://.",
        "- CLICKHOUSE_PORT is not a whole number. Valid: a whole number from 1 to 65535.",
        f"- CLICKHOUSE_DATABASE {wrong_format} letters, digits and underscores, not starting with a digit.",
        "- POSTGRES_PORT is too large. Valid: a whole number from 1 to 65535.",
    ]


def test_debug_and_cloud_deployment_exclude_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**PRODUCTION, "DEBUG": "1"})
    with pytest.raises(SettingsError, match="CLOUD_DEPLOYMENT is set together with DEBUG: unset one"):
        Settings()


@pytest.mark.parametrize("missing", sorted(set(PRODUCTION) - {"CLOUD_DEPLOYMENT"}))
@pytest.mark.parametrize("empty", [True, False])
def test_production_requires_each_credential(monkeypatch: pytest.MonkeyPatch, missing: str, empty: bool) -> None:  # noqa: FBT001 - a parameter
    set_all(monkeypatch, PRODUCTION)
    if empty:
        monkeypatch.setenv(missing, "")
    else:
        monkeypatch.delenv(missing)
    with pytest.raises(SettingsError) as caught:
        Settings()
    (line,) = str(caught.value).splitlines()[1:]
    assert line.startswith(f"- {missing} is not set, and is required when CLOUD_DEPLOYMENT is set.")


def test_no_value_of_a_variable_is_in_the_error_or_its_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name.upper() for name in Settings.model_fields]
    set_all(monkeypatch, dict.fromkeys(names, f"{SECRET} !"))
    with pytest.raises(SettingsError) as caught:
        Settings()
    error: BaseException | None = caught.value
    while error is not None:
        assert SECRET not in str(error) + repr(error)
        error = error.__cause__ or error.__context__


def test_secrets_are_not_in_the_text_of_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    set_all(monkeypatch, {**PRODUCTION, "OPEN_EXCHANGE_RATES_APP_ID": SECRET})
    settings = Settings()
    assert SECRET not in f"{settings}{settings!r}{settings.model_dump_json()}"


def test_an_argument_of_an_unknown_name_is_rejected() -> None:
    with pytest.raises(SettingsError, match="CLICKHOUSE_PROT is not a variable of this project"):
        Settings(clickhouse_prot=1)  # type: ignore[call-arg] # the mistake under test


def test_settings_are_read_once_and_on_first_use(monkeypatch: pytest.MonkeyPatch) -> None:
    get_settings.cache_clear()
    monkeypatch.setenv("CLICKHOUSE_PORT", "5001")
    assert get_settings().clickhouse_port == 5001
    monkeypatch.setenv("CLICKHOUSE_PORT", "5002")
    assert get_settings().clickhouse_port == 5001
    get_settings.cache_clear()


def test_a_dotenv_file_is_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    directory = tmp_path_factory.mktemp("dotenv")
    (directory / ".env").write_text("CLICKHOUSE_PORT=5003\n")
    monkeypatch.chdir(directory)
    assert Settings().clickhouse_port == 19000


def test_every_variable_has_a_description_and_says_its_valid_values() -> None:
    fields = Settings.model_fields
    assert all(field.description and _valid_values(field) for field in fields.values())
    assert _valid_values(fields["object_storage_bucket"]) == "text of at least 3 characters"
