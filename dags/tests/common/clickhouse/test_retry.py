import errno

import pytest
from clickhouse_driver import Client, errors

from dags.common.clickhouse.retry import SERVER_ERRORS, RetryPolicy, is_connection_error, is_transient


def server_error(code: int, message: str = "DB::Exception") -> errors.ServerException:
    return errors.ServerException(message, code)


# Repeated on purpose, so that a change of the table is a decision in the test too.
TRANSIENT_CODES = [
    32, 202, 203, 209, 210, 225, 236, 242, 252, 279, 285, 286, 319, 439, 473, 517, 529, 733, 745, 999,
]  # fmt: skip
PERMANENT_CODES = [47, 57, 60, 62, 81, 158, 159, 160, 164, 243, 307, 341, 394, 497, 499, 516, 692]


@pytest.mark.parametrize("code", TRANSIENT_CODES)
def test_a_transient_server_error_may_be_retried(code: int) -> None:
    assert is_transient(server_error(code))
    assert not is_connection_error(server_error(code))


@pytest.mark.parametrize("code", PERMANENT_CODES)
def test_a_permanent_server_error_is_not_retried(code: int) -> None:
    assert not is_transient(server_error(code))


def test_a_memory_limit_is_transient_only_when_the_whole_server_is_short() -> None:
    assert is_transient(server_error(241, "DB::Exception: (total) memory limit exceeded: would use 4.00 GiB"))
    assert not is_transient(server_error(241, "DB::Exception: Query memory limit exceeded: would use 4.00 GiB"))


def test_an_unknown_server_error_is_permanent() -> None:
    assert not is_transient(server_error(987654))


def test_the_two_lists_and_the_memory_limit_are_the_whole_table() -> None:
    assert {*TRANSIENT_CODES, *PERMANENT_CODES, 241} == set(SERVER_ERRORS)


def test_every_code_has_the_servers_name(clickhouse_port: int) -> None:
    with Client("127.0.0.1", clickhouse_port) as client:
        names = dict(
            client.execute(
                "SELECT code, errorCodeToName(code) FROM (SELECT arrayJoin(%(codes)s) AS code)",
                {"codes": list(SERVER_ERRORS)},
            )
        )
    assert names == {code: error.name for code, error in SERVER_ERRORS.items()}


@pytest.mark.parametrize(
    "error",
    [
        errors.NetworkError("no route"),
        errors.SocketTimeoutError("no answer"),
        EOFError("Unexpected EOF while reading bytes"),
        ConnectionResetError(),
        BrokenPipeError(),
        TimeoutError(),
        OSError(errno.EHOSTUNREACH, "No route to host"),
    ],
)
def test_a_failed_connection_may_be_retried(error: Exception) -> None:
    assert is_connection_error(error)
    assert is_transient(error)


@pytest.mark.parametrize(
    "error", [ValueError(), KeyError(), FileNotFoundError(errno.ENOENT, "no such file"), errors.TypeMismatchError("x")]
)
def test_an_error_of_the_calling_code_is_not_a_failed_connection(error: Exception) -> None:
    assert not is_connection_error(error)
    assert not is_transient(error)


def test_waits_double_up_to_the_maximum_with_some_jitter() -> None:
    from tenacity import RetryCallState, Retrying

    policy = RetryPolicy(first_wait_seconds=1, max_wait_seconds=8)
    state = RetryCallState(Retrying(), None, (), {})
    waits = []
    for attempt in range(1, 7):
        state.attempt_number = attempt
        waits.append([policy.wait()(state) for _ in range(50)])
    for shortest, seconds in zip((1, 2, 4, 8, 8, 8), waits, strict=True):
        assert all(shortest <= one <= shortest + 1 for one in seconds)
        assert len(set(seconds)) > 1, "there is no jitter"
