"""`python -m dags.local.dev`, which `make dev` runs: the embedded stack with a sample of events, and Dagster."""

import os
import sys

import click

from dags.local import ports

port_option = click.option(
    "--port", type=click.IntRange(1, 65535), default=3000, show_default=True, help="Of Dagster's UI."
)


@click.group()
def main() -> None:
    """The stack together with Dagster, until Ctrl-C."""


@main.command()
@port_option
def up(port: int) -> None:
    """Start the stack, and run `serve` with it."""
    # Checked first, so that the reason is the last line printed.
    if not ports.is_free(port):
        raise click.ClickException(
            f"Port {port}, needed by Dagster's UI, is used by {ports.process_on(port)}: "
            "stop it, or choose another port, as in DAGSTER_PORT=3001 make dev."
        )
    replace_process("dags.local", "up", "--", sys.executable, "-m", "dags.local.dev", "serve", "--port", str(port))


@main.command()
@port_option
def serve(port: int) -> None:
    """Apply the schema to the running stack, load the sample, then run `dagster dev` with this project's workspace."""
    import dagster as dg

    from dags.common.clickhouse.discovery import cluster_from_settings
    from dags.common.clickhouse.schema import apply_schema, create_database, is_clustered
    from dags.common.inventory import pools_of
    from dags.common.s3 import make_s3
    from dags.common.settings import get_settings
    from dags.definitions import defs
    from dags.local.demo.ingestion import ingest, put_sample
    from dags.local.demo.stage import DemoError, Stage
    from dags.local.pools import record_pool_limits

    settings = get_settings()
    create_database(settings)
    with cluster_from_settings(settings) as cluster, dg.DagsterInstance.get() as instance:
        changes = apply_schema(cluster, is_clustered(settings))
        click.echo(f"ClickHouse: applied the schema ({len(changes)} statements).")
        record_pool_limits(instance, pools_of(defs))
        stage = Stage(settings, cluster, make_s3(settings), instance, click.echo)
        try:
            ingest(stage, put_sample(stage))
        except DemoError as error:
            # Dagster's UI shows why.
            click.echo(f"The sample is not loaded: {error}", err=True)
    click.echo("Starting Dagster.")
    # The alert router asks the webserver which code locations load.
    os.environ["DAGSTER_WEBSERVER_URL"] = f"http://{ports.LOOPBACK}:{port}"
    replace_process("dagster", "dev", "-w", ".dagster_home/workspace.yaml", "-h", ports.LOOPBACK, "-p", str(port))


def replace_process(module: str, *arguments: str) -> None:
    """Replace this process by a module, so that signals from `make` and the terminal reach it directly."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])  # noqa: S606 - no shell is wanted


if __name__ == "__main__":
    main(prog_name="python -m dags.local.dev")
