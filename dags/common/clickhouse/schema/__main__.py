"""The command `python -m dags.common.clickhouse.schema`: apply or show the ClickHouse schema."""

import sys

import click

from dags.common.clickhouse.ddl import SchemaForm
from dags.common.clickhouse.discovery import access_from_settings, connect
from dags.common.clickhouse.errors import ClusterError, UnknownClusterError, one_line
from dags.common.clickhouse.retry import is_connection_error
from dags.common.clickhouse.schema import apply_schema, author, create_database, described, is_clustered
from dags.common.clickhouse.schema.retired import drop_retired_tables
from dags.common.clickhouse.tables import SCHEMA
from dags.common.settings import SettingsError, get_settings


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Apply or show the ClickHouse schema: the tables and dictionaries of dags/common/clickhouse/tables.py.

    Host, database and cluster come from the CLICKHOUSE_* variables; with DEBUG=1 they are the local stack's.
    """


@main.command()
@click.option("--dry-run", is_flag=True, help="Print the statements, and change nothing.")
def apply(dry_run: bool) -> None:  # noqa: FBT001 - click calls it
    """Apply the schema. Safe to repeat at any time.

    Creates the database and missing tables, adds missing columns, replaces changed dictionaries, and records it in
    schema_migrations. A difference that needs a migration by hand, such as a type, is an error before any change.
    Tables that another one replaced are dropped when that one has all of their days; until then it says what lacks.

    \b
    DEBUG=1 python -m dags.common.clickhouse.schema apply --dry-run   # print the statements for the local stack
    DEBUG=1 python -m dags.common.clickhouse.schema apply             # run them
    """  # noqa: D301 - click keeps the lines after this character as they are
    from clickhouse_driver import errors

    try:
        settings = get_settings()
        clustered = is_clustered(settings)
        if not dry_run:
            create_database(settings)
        access = access_from_settings(settings)
        with connect(
            access, settings.clickhouse_host, settings.clickhouse_port, settings.clickhouse_cluster
        ) as cluster:
            changes = apply_schema(cluster, clustered, dry_run=dry_run)
            retired = drop_retired_tables(cluster, clustered, applied_by=author(), dry_run=dry_run)
    except (SettingsError, UnknownClusterError, ClusterError) as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:
        if isinstance(error, errors.ServerException):
            raise click.ClickException(one_line(error)) from error
        if is_connection_error(error):
            raise click.ClickException(f"ClickHouse cannot be reached: {one_line(error)}. Is it running?") from error
        raise
    click.echo(described(changes))
    if not changes:
        click.echo("Nothing to do: the database matches the schema.")
    elif dry_run:
        click.echo(f"Dry run: nothing was changed. {len(changes)} statements would be run.")
    else:
        click.echo(f"Applied: {len(changes)} statements.")
    for table in retired:
        click.echo(f"{'' if not dry_run else 'Dry run: '}{table}")


@main.command()
@click.option("--clustered", "cluster_name", metavar="NAME", help="Print the form for a cluster of that name.")
@click.option("--database", default="default", show_default=True, help="Database in the statements.")
def show(cluster_name: str | None, database: str) -> None:
    """Print the statements that create the whole schema, without a connection.

    \b
    python -m dags.common.clickhouse.schema show                        # for one node
    python -m dags.common.clickhouse.schema show --clustered analytics  # replicated, for a cluster
    """  # noqa: D301 - as above
    form = SchemaForm(database, cluster_name)
    for target in SCHEMA:
        for statement in target.statements(form):
            click.echo(f"{statement};\n")


if __name__ == "__main__":
    sys.exit(main())
