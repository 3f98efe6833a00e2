"""Fixtures for the demo: its environment, and an access log."""

import gzip
import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from dags.tests.local.demo.running import ROOT

# Two visits, the first across midnight and with an image; and a bot.
CHROME = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/43.0.2357.65 Safari/537.36"
GOOGLEBOT = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
LOG_LINES = [
    f'192.0.2.1 - - [17/May/2015:23:50:00 +0000] "GET / HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.1 - - [17/May/2015:23:50:01 +0000] "GET /logo.png HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.1 - - [18/May/2015:00:05:00 +0000] "GET /about HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.2 - - [18/May/2015:09:00:00 +0000] "GET /about HTTP/1.1" 200 900 "-" "{CHROME}"',
    f'192.0.2.3 - - [18/May/2015:09:00:00 +0000] "GET /about HTTP/1.1" 200 900 "-" "{GOOGLEBOT}"',
]


@pytest.fixture
def environment(
    tmp_path: Path,
    clickhouse_port: int,
    clickhouse_database: str,
    s3_endpoint: str,
    s3_bucket: str,
    postgres_dsn: str,
) -> dict[str, str]:
    """The environment of `make demo` with an empty database, an empty bucket and a new Dagster instance."""
    shutil.copy(ROOT / ".dagster_home" / "dagster.yaml", tmp_path)
    postgres = urlsplit(postgres_dsn)
    return {
        **os.environ,
        "DEBUG": "1",
        "DAGSTER_HOME": str(tmp_path),
        "CLICKHOUSE_PORT": str(clickhouse_port),
        "CLICKHOUSE_DATABASE": clickhouse_database,
        "OBJECT_STORAGE_ENDPOINT": s3_endpoint,
        "OBJECT_STORAGE_BUCKET": s3_bucket,
        "POSTGRES_PORT": str(postgres.port),
        "POSTGRES_DATABASE": postgres.path.removeprefix("/"),
        "OPEN_EXCHANGE_RATES_APP_ID": "",
    }


@pytest.fixture
def access_log(tmp_path: Path) -> Path:
    """An access log with the name of a rotated log."""
    path = tmp_path / "access log.1.gz"
    path.write_bytes(gzip.compress("".join(f"{line}\n" for line in LOG_LINES).encode()))
    return path
