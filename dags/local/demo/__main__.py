"""`python -m dags.local.demo`: the demo, on a running stack."""

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import click
import dagster as dg

from dags.common.clickhouse.discovery import cluster_from_settings
from dags.common.clickhouse.schema import apply_schema, create_database, is_clustered
from dags.common.s3 import make_s3
from dags.common.settings import get_settings
from dags.local.demo import daily_digest, exchange_rates, web_analytics
from dags.local.demo.stage import DemoError, Stage

file_type = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option("--access-log", type=file_type, help="An access log in the combined format, plain or gz.")
@click.option("--events", type=file_type, help="Events as JSON lines (plain, gz, zst) or Parquet.")
def main(access_log: Path | None, events: Path | None) -> None:
    """Run the jobs of the teams and print their results. Without a file, web analytics uses a sample."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {line}", flush=True)

    try:
        run_demo(say, access_log, events)
    except DemoError as error:
        reason = str(error)
    except Exception as error:  # noqa: BLE001 - the last line of output is the reason, whatever the error
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
    else:
        print(f"\nThe demo succeeded in {time.monotonic() - started:.1f} seconds.")
        return
    sys.stdout.flush()
    print(f"\nThe demo failed: {reason}\nThe services' logs are in .local/logs.", file=sys.stderr)
    sys.exit(1)


def run_demo(say: Callable[[str], None], access_log: Path | None, events: Path | None) -> None:
    """Run every part; `say` prints a line of progress. Raises DemoError, and what the parts raise."""
    settings = get_settings()
    say("ClickHouse: applying the schema")
    create_database(settings)
    with cluster_from_settings(settings) as cluster, dg.DagsterInstance.get() as instance:
        changes = apply_schema(cluster, is_clustered(settings))
        say(f"ClickHouse: ran {len(changes)} statements on {', '.join(map(str, cluster.hosts))}")
        stage = Stage(settings, cluster, make_s3(settings), instance, say)
        try:
            exchange_rates.show(stage)
            last_day = web_analytics.show(stage, access_log, events)
            daily_digest.show(stage, last_day)
        finally:
            stage.show_runs_and_checks()


if __name__ == "__main__":
    main(prog_name="python -m dags.local.demo")
