import json
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import psycopg2.errors
import pytest
from click.testing import CliRunner, Result

from dags.common.deletion_requests import (
    RequestKind,
    RequestState,
    UnknownRequestError,
    apply_migrations,
    list_requests,
    mark_done,
    refuse,
    request_deletion,
)
from dags.common.postgres import Postgres
from dags.common.settings import Settings, get_settings
from dags.deletes.__main__ import main
from dags.tests.rewriting import person, postgres_of


@pytest.fixture
def postgres(postgres_dsn: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Postgres]:
    parts = psycopg2.extensions.parse_dsn(postgres_dsn)
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in {
        "DEBUG": "1",
        "POSTGRES_HOST": parts["host"],
        "POSTGRES_PORT": parts["port"],
        "POSTGRES_USER": parts["user"],
        "POSTGRES_DATABASE": parts["dbname"],
    }.items():
        monkeypatch.setenv(name, value)
    get_settings.cache_clear()
    yield postgres_of(postgres_dsn)
    get_settings.cache_clear()


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


@pytest.mark.usefixtures("postgres")
def test_requests_are_listed_and_shown() -> None:
    one = str(person(1))
    requested = command(
        "request", "person", "--team", "2", "--by", "alice", "--reason", "ticket 7", one, str(person(2))
    )
    assert requested.exit_code == 0, requested.output
    first, second = requested.output.split()
    listed = command("list", "--state", "pending").output.splitlines()
    assert [line.split()[0] for line in listed] == [first, second]
    shown = command("show", first).output
    for text in ("team 2", f"person {one}", "by alice", "ticket 7", "pending"):
        assert text in shown


def test_requests_of_every_kind_can_be_made(postgres: Postgres, tmp_path: Path) -> None:
    assert command("request", "team", "--team", "2", "--by", "alice").exit_code == 0
    assert command("request", "event", "--team", "2", "--by", "alice", "signed up").exit_code == 0
    path = tmp_path / "uuids"
    path.write_text(f"{person(1)}\n\n{person(2)}\n")
    assert command("request", "uuid", "--team", "2", "--by", "alice", "--file", str(path)).exit_code == 0
    assert [(one.kind, one.key) for one in list_requests(postgres)] == [
        (RequestKind.TEAM, ""),
        (RequestKind.EVENT, "signed up"),
        (RequestKind.UUID, str(person(1))),
        (RequestKind.UUID, str(person(2))),
    ]


def test_a_line_that_is_not_a_uuid_is_named_and_nothing_is_requested(postgres: Postgres, tmp_path: Path) -> None:
    path = tmp_path / "uuids"
    path.write_text(f"{person(1)}\nnonsense\n")
    refused = command("request", "uuid", "--team", "2", "--by", "alice", "--file", str(path))
    assert refused.exit_code != 0
    assert "line 2" in refused.output
    apply_migrations(postgres)
    assert list_requests(postgres) == []


def test_a_refused_request_has_the_reason_and_cannot_be_refused_or_done_again(postgres: Postgres) -> None:
    apply_migrations(postgres)
    (id_,) = request_deletion(postgres, RequestKind.TEAM, 1, [""], requested_by="a test")
    assert command("refuse", str(id_), "--why", "they have changed their mind").exit_code == 0
    (one,) = list_requests(postgres)
    assert (one.state, one.note) == (RequestState.REFUSED, "they have changed their mind")
    assert command("refuse", str(id_), "--why", "again").exit_code != 0
    with pytest.raises(UnknownRequestError):
        mark_done(postgres, {id_: {}})
    with pytest.raises(UnknownRequestError):
        refuse(postgres, id_ + 1, "there is none")


def test_an_unknown_request_and_an_empty_list_are_reported(postgres: Postgres) -> None:
    apply_migrations(postgres)
    assert "There is no deletion request 12" in command("show", "12").output
    assert "There is no request" in command("list").output


@pytest.mark.parametrize(
    ("kind", "key"),
    [("person", "nobody"), ("person", ""), ("team", "x"), ("event", ""), ("uuid", "12"), ("planet", "")],
)
def test_postgres_refuses_a_key_that_does_not_fit_the_kind(postgres: Postgres, kind: str, key: str) -> None:
    apply_migrations(postgres)
    with (
        pytest.raises(psycopg2.errors.CheckViolation),
        postgres.connection() as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(
            "INSERT INTO deletion_requests (kind, team_id, key, requested_by) VALUES (%s, 1, %s, 'an application')",
            (kind, key),
        )


def test_the_migrations_can_be_applied_again_and_again(postgres: Postgres) -> None:
    assert apply_migrations(postgres) == apply_migrations(postgres) == 1
    (id_,) = request_deletion(postgres, RequestKind.TEAM, 1, [""], requested_by="a test")
    apply_migrations(postgres)
    mark_done(postgres, {id_: {"run_id": "a run"}})
    (one,) = list_requests(postgres, ids=[id_])
    assert json.dumps(one.evidence) == '{"run_id": "a run"}'
