import threading
import time

import pytest
from pydantic import SecretStr

from dags.common.locks import LockLostError, LockTimeoutError, exclusive
from dags.common.postgres import Postgres
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


def test_a_wait_for_a_held_lock_times_out_and_another_lock_is_free(postgres: Postgres) -> None:
    with (
        exclusive(postgres, "a held lock", 5),
        exclusive(postgres, "another lock", 5),
        pytest.raises(LockTimeoutError, match=r"'a held lock' was held by another process for 0\.1 seconds"),
        exclusive(postgres, "a held lock", 0.1),
    ):
        pass
    with exclusive(postgres, "a held lock", 5):
        pass


def test_a_timeout_names_the_holder_since_when_it_holds_and_until_when_it_may(postgres: Postgres) -> None:
    with (
        exclusive(postgres, "a named lock", 5, holder="squash run 1234", hold_seconds=600),
        pytest.raises(
            LockTimeoutError,
            match=r"0\.1 seconds: 'squash run 1234 until 20\S+Z' \(Postgres process \d+, from 127\.0\.0\.1\), "
            r"which requested it at 20\S+Z\. Try again",
        ),
        exclusive(postgres, "a named lock", 0.1),
    ):
        pass


def test_a_long_name_is_cut_but_not_the_time_of_expiry(postgres: Postgres) -> None:
    with (
        exclusive(postgres, "a lock of a long name", 5, holder="é" * 200, hold_seconds=600),
        pytest.raises(LockTimeoutError, match=r"'\?+ until 20\S+Z'"),
        exclusive(postgres, "a lock of a long name", 0.1),
    ):
        pass


def test_a_lock_that_is_held_for_too_long_is_released_and_its_holder_notices(postgres: Postgres) -> None:
    def hold_for_too_long() -> None:
        with exclusive(postgres, "an expiring lock", 5, hold_seconds=0.2) as lock:
            lock.assert_held()
            with exclusive(postgres, "an expiring lock", 30):
                lock.assert_held()

    with pytest.raises(LockLostError, match="an expiring lock"):
        hold_for_too_long()


def test_an_error_inside_releases_the_lock_and_is_raised(postgres: Postgres) -> None:
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
