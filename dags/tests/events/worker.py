"""A process that loads objects and kills itself at a chosen statement.

python -m dags.tests.events.worker '{"die_at": 5, "in_flight": true, …}'
"""

import functools
import itertools
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from clickhouse_driver import Client
from pydantic import SecretStr

from dags.common.clickhouse.cluster import ClickhouseCluster
from dags.common.clickhouse.hosts import Access, Host
from dags.common.clickhouse.object_storage import ObjectStorage
from dags.common.postgres import Postgres
from dags.local import services
from dags.tests.conftest import CREDENTIALS
from dags.tests.events.world import World


class DyingCluster(ClickhouseCluster):
    """Kills the process at its statement number `die_at`, before it is sent or while it runs."""

    die_at: int
    in_flight: bool
    statements: "itertools.count[int]"

    def _submit(self, fn: Callable[[Client], Any], hosts: Sequence[Host], **arguments: Any) -> Any:
        number = next(self.statements)
        if number == self.die_at and not self.in_flight:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == self.die_at:
            fn = functools.partial(_send_and_die, fn)
        return super()._submit(fn, hosts, **arguments)


def _send_and_die(fn: Callable[[Client], Any], client: Client) -> Any:
    original = client.connection.send_query

    def send_and_die(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        client.connection.send_external_tables([])
        # Time for the server to start it.
        time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGKILL)

    client.connection.send_query = send_and_die
    return fn(client)


def main() -> None:
    """Load every object, or die."""
    options = json.loads(sys.argv[1])
    cluster = DyingCluster([Host("127.0.0.1", options["clickhouse_port"])], Access(database=options["database"]))
    cluster.die_at, cluster.in_flight = options["die_at"], options["in_flight"]
    cluster.statements = itertools.count(1)
    storage = ObjectStorage(
        options["bucket"],
        f"http://127.0.0.1:{options['s3_port']}/{options['bucket']}",
        CREDENTIALS.s3_access_key_id,
        SecretStr(CREDENTIALS.s3_secret_access_key),
    )
    postgres = Postgres(
        "127.0.0.1", options["postgres_port"], CREDENTIALS.postgres_user, SecretStr(""), options["postgres_database"]
    )
    World(cluster, postgres, services.s3_client(options["s3_port"], CREDENTIALS), storage).load(run_id="a worker")
    cluster.close()
    sys.stdout.write(f"statements {next(cluster.statements) - 1}\n")


if __name__ == "__main__":
    main()
