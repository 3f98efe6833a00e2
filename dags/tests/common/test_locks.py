import threading
import time

import pytest
from pydantic import SecretStr

from dags.common.locks import LockLostError, LockTimeoutError, exclusive
from dags.common.resources import Postgres
from dags.tests.conftest import CREDENTIALS


@pytest.fixture
def postgres(postgres_port: int) -> Postgres:
    return Postgres("127.0.0.1", postgres_port, CREDENTIALS.postgres_user, SecretStr(""), "postgres")


def test_a_lock_has_one_holder_and_the_next_waits_for_its_end(postgres: Postgres) -> None:
    order: list[str] = []
    held = threading.Event()

    def second() -> None:
        held.wait()
        with exclusive(postgres, "a lock of this test", 30):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with exclusive(postgres, "a lock of this test", 30) as lock:
        held.set()
        time.sleep(0.3)
        lock.assert_held()
        order.append("first")
    thread.join(30)
    assert order == ["first", "second"]


def test_who_waits_too_long_is_told_and_another_lock_is_free(postgres: Postgres) -> None:
    with (
        exclusive(postgres, "a held lock", 5),
        exclusive(postgres, "another lock", 5),
        pytest.raises(LockTimeoutError, match=r"'a held lock' was held by somebody else for 0\.1 seconds"),
        exclusive(postgres, "a held lock", 0.1),
    ):
        pass
    with exclusive(postgres, "a held lock", 5):
        pass


def test_an_error_inside_gives_the_lock_back_and_comes_through(postgres: Postgres) -> None:
    with pytest.raises(ValueError, match="inside"), exclusive(postgres, "a lock and an error", 5):
        raise ValueError("inside")
    with exclusive(postgres, "a lock and an error", 5):
        pass


def test_the_loss_of_the_connection_is_noticed_and_the_lock_is_free(postgres: Postgres) -> None:
    def lose() -> None:
        with exclusive(postgres, "a lost lock", 5) as lock:
            with postgres.connection() as other, other.cursor() as cursor:
                cursor.execute("SELECT pg_terminate_backend(%s)", (lock._connection.info.backend_pid,))
            with exclusive(postgres, "a lost lock", 5):
                lock.assert_held()

    with pytest.raises(LockLostError, match="a lost lock"):
        lose()
