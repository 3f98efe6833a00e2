"""The pages for operators: each runbook is complete, and everything a page names exists."""

import contextlib
import re
import subprocess
import sys
from pathlib import Path

import psycopg2
import pytest

from dags.definitions import load_locations
from dags.tests.alerts.world import local_instance
from dags.tests.deploy import chart

DOCS = chart.ROOT / "docs"
RUNBOOKS = sorted((DOCS / "runbooks").glob("*.md"))
PAGES = [DOCS / "deploy.md", DOCS / "start-a-run.md", *RUNBOOKS]
PARTS = ["Symptom", "Where to look", "Fix", "Prevent"]
INCIDENTS = {
    "scheduler-stuck",
    "executor-out-of-memory",
    "credential-failure",
    "silent-success",
    "backfill-collision",
    "high-latency",
    "postgres-full",
    "clickhouse-down",
    "slack-down",
    "daemon-down",
}


def by_name(pages: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


def commands_of_the_project() -> set[tuple[str, ...]]:
    """Return every command of the project that a page names: module, and subcommand if there is one."""
    pattern = r"python -m ((?:dags|tools)(?:\.\w+)+)(?: ([a-z][a-z-]*))?"
    pages = sorted(DOCS.rglob("*.md"))
    return {tuple(filter(None, found)) for page in pages for found in re.findall(pattern, page.read_text())}


def test_each_kind_of_incident_has_a_runbook_and_the_page_on_deploying_links_to_it() -> None:
    assert {page.stem for page in RUNBOOKS} == INCIDENTS
    page = (DOCS / "deploy.md").read_text()
    assert all(f"(runbooks/{name}.md)" in page for name in INCIDENTS)


@by_name(RUNBOOKS)
def test_a_runbook_has_four_parts_and_a_command_for_diagnosis(page: Path) -> None:
    text = page.read_text()
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == PARTS
    looking = text[text.index("## Where to look") : text.index("## Fix")]
    assert "```" in looking, "give the command"


@by_name(PAGES)
def test_every_file_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    for path in re.findall(r"\b((?:deploy|docs|dags)/[\w./-]*\w\.(?:yaml|py|md))\b", text):
        assert (chart.ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)#]+\.md)(?:#[\w-]+)?\)", text):
        assert (page.parent / link).exists(), link


@by_name(PAGES)
def test_every_job_and_schedule_that_a_page_names_is_defined(page: Path) -> None:
    defined = {
        one.name
        for location in load_locations().values()
        for one in [*(location.jobs or []), *(location.schedules or []), *(location.sensors or [])]
    }
    named = set(re.findall(r"\b[a-z_]+_(?:job|schedule)\b", page.read_text()))
    assert named <= defined


def test_every_deployment_that_a_page_names_exists() -> None:
    servers = {server["name"] for server in chart.code_servers(chart.values_of())}
    deployments = {"dagster-daemon", "dagster-webserver"}
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"deploy(?:ment)?/(dagster-[\w-]+)", text)) <= deployments
        assert set(re.findall(r"-l deployment=([\w-]+)", text)) <= servers


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_every_command_of_the_project_that_a_page_names_exists() -> None:
    commands = commands_of_the_project()
    assert ("dags.alerts", "status") in commands
    for module, *subcommand in sorted(commands):
        command = [sys.executable, "-m", module, *subcommand, "--help"]
        result = subprocess.run(command, cwd=chart.ROOT, capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == 0, f"{' '.join(command)}: {result.stderr}"


def test_every_query_of_dagsters_database_runs(tmp_path: Path, postgres_dsn: str) -> None:
    queries = [
        line
        for page in RUNBOOKS
        for line in page.read_text().splitlines()
        if line.startswith("SELECT") and "pg_" in line
    ]
    assert len(queries) >= 5
    with (
        local_instance(tmp_path / "home", postgres_dsn),
        contextlib.closing(psycopg2.connect(postgres_dsn)) as connection,
    ):
        for query in queries:
            with connection.cursor() as cursor:
                # Dagster's database has another name in the tests.
                cursor.execute(query.replace("'dagster'", "current_database()"))
                cursor.fetchall()


def test_the_steps_of_an_installation_are_in_an_order_that_works() -> None:
    page = (DOCS / "deploy.md").read_text()
    install = page[page.index("## Install") : page.index("## Network")]
    steps = [
        "docker build",
        "docker push",
        "manifests/namespace.yaml",
        "create secret generic dagster-postgresql-secret",
        "helm upgrade --install dagster dagster",
        "manifests/prepare-instance.yaml",
    ]
    places = [install.index(step) for step in steps]
    assert places == sorted(places)


def test_the_backup_job_has_the_tools_of_the_newest_supported_postgres() -> None:
    page = (DOCS / "deploy.md").read_text()
    (versions,) = re.findall(r"^\| Postgres \| ([^|]+) \|", page, re.MULTILINE)
    newest = max(map(int, re.findall(r"\d+", versions)))
    manifest = (chart.DEPLOY / "manifests" / "database-backup.yaml").read_text()
    assert re.findall(r"library/postgres:(\d+)\.", manifest) == [str(newest)]


def test_a_restore_takes_back_the_replicas_that_scaling_changed() -> None:
    page = (DOCS / "deploy.md").read_text()
    restore = page[page.index("## Back up and restore") :]
    assert restore.index("--replicas=0") < restore.index("--force-conflicts")
