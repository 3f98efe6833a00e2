"""`python -m dags.local`, started and stopped as users do it."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from dags.local import directory, ports, services
from dags.local.plan import StackPlan
from dags.tests.local.conftest import StartUp, processes_of, wait_until

LIGHT = ("--services", "s3,postgres")
LIGHTEST = ("--services", "s3")


def run(*arguments: str, path: Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """A command of `python -m dags.local` on a directory."""
    return subprocess.run(
        [sys.executable, "-m", "dags.local", *arguments, "--directory", str(path)],
        cwd=services.PROJECT,
        input=text or "",
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )


def port_of(options: list[str], option: str) -> int:
    return int(options[options.index(option) + 1])


def shared_memory_of_postgres() -> set[Path]:
    return set(Path("/dev/shm").glob("Postgre*"))  # noqa: S108 - only read


def test_every_service_answers_and_sigterm_leaves_nothing_behind(
    start_up: StartUp, stack_directory: Path, free_ports: list[str]
) -> None:
    shared_memory = shared_memory_of_postgres()
    up = start_up("--nodes", "1").ready()
    status = run("status", "--json", path=stack_directory)
    assert status.returncode == 0, status.stdout
    rows = json.loads(status.stdout)["services"]
    assert [row["service"] for row in rows] == ["s3", "postgres", "clickhouse-1"]
    assert all(row["state"] == "running" and row["data_bytes"] > 0 for row in rows)

    up.process.send_signal(signal.SIGTERM)

    assert up.ended() == 0, up.output
    assert processes_of(stack_directory) == []
    assert all(ports.is_free(port_of(free_ports, option)) for option in ("--s3-port", "--postgres-port"))
    assert not (stack_directory / directory.STATE).exists()
    assert not list(stack_directory.rglob("*.pid"))
    # Another test may be creating its cluster meanwhile.
    wait_until(lambda: shared_memory_of_postgres() <= shared_memory, "no new shared memory is left")


def test_ctrl_c_stops_the_stack_with_exit_code_zero(start_up: StartUp, stack_directory: Path) -> None:
    up = start_up(*LIGHTEST).ready()
    # To the whole process group, as a terminal does.
    os.killpg(up.process.pid, signal.SIGINT)
    assert up.ended() == 0
    assert "SIGINT: stopping" in up.output
    assert processes_of(stack_directory) == []


def test_a_signal_before_the_stack_is_ready_stops_it(start_up: StartUp, stack_directory: Path) -> None:
    up = start_up()
    wait_until((stack_directory / directory.STATE).exists, "the start has begun")
    up.process.send_signal(signal.SIGTERM)
    assert up.ended() in {0, 128 + signal.SIGTERM}
    assert processes_of(stack_directory) == []


def test_the_services_of_a_killed_supervisor_stop_and_the_next_up_works_at_once(
    start_up: StartUp, stack_directory: Path
) -> None:
    start_up().ready().process.kill()
    again = start_up().ready()
    assert run("status", path=stack_directory).returncode == 0
    again.process.kill()
    wait_until(lambda: not processes_of(stack_directory), "the services have stopped by themselves")


def test_a_stack_whose_processes_are_all_killed_starts_again(start_up: StartUp) -> None:
    up = start_up().ready()
    victims = [up.process.pid, *(up.pid_of(name) for name in ("s3", "postgres", "clickhouse-1"))]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    start_up().ready()


def test_a_second_up_says_which_process_holds_the_directory(start_up: StartUp, stack_directory: Path) -> None:
    first = start_up(*LIGHTEST).ready()
    second = start_up(*LIGHTEST)
    assert second.ended() == 1
    assert f"already runs on {stack_directory} (process {first.process.pid})" in second.output
    assert first.process.poll() is None


def test_a_busy_port_is_named_with_its_service_and_remedy_before_anything_starts(
    start_up: StartUp, stack_directory: Path, free_ports: list[str]
) -> None:
    with socket.socket() as listener:
        listener.bind((ports.LOOPBACK, port_of(free_ports, "--postgres-port")))
        listener.listen()
        up = start_up()
        assert up.ended() == 1
    port = port_of(free_ports, "--postgres-port")
    assert f"Port {port}, needed by postgres, is used by" in up.output
    assert f"(pid {os.getpid()})" in up.output
    assert "choose another port with --postgres-port or POSTGRES_PORT" in up.output
    assert not (stack_directory / "s3").exists()


def test_ports_come_from_the_settings_when_no_option_is_given(stack_directory: Path) -> None:
    port = ports.free_port()
    found = subprocess.run(
        [
            *(sys.executable, "-m", "dags.local", "up", "--directory", str(stack_directory), *LIGHTEST),
            *("--", sys.executable, "-c", "import os; print(os.environ['OBJECT_STORAGE_ENDPOINT'])"),
        ],
        cwd=services.PROJECT,
        env={**os.environ, "OBJECT_STORAGE_ENDPOINT": f"http://127.0.0.1:{port}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert found.stdout == f"http://127.0.0.1:{port}\n", found.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CLICKHOUSE_HOST", "clickhouse.example.com"),
        ("POSTGRES_HOST", "10.0.0.1"),
        ("OBJECT_STORAGE_ENDPOINT", "https://s3.example.com"),
        ("CLOUD_DEPLOYMENT", "US"),
    ],
)
def test_settings_of_another_host_are_rejected(
    start_up: StartUp, stack_directory: Path, variable: str, value: str
) -> None:
    up = start_up(environment={variable: value})
    assert up.ended() == 1
    assert variable in up.output
    assert "Traceback" not in up.output
    assert not stack_directory.exists()


def test_two_services_on_one_port_are_rejected(start_up: StartUp) -> None:
    up = start_up("--s3-port", "19999", "--postgres-port", "19999")
    assert up.ended() == 1
    assert "s3 and postgres would share port 19999" in up.output


def test_the_death_of_a_service_stops_the_stack_with_its_name_and_log(start_up: StartUp, stack_directory: Path) -> None:
    up = start_up(*LIGHT).ready()
    pid = up.pid_of("s3")
    os.kill(pid, signal.SIGKILL)
    assert up.ended() == 1
    assert f"s3 (pid {pid}) was killed by SIGKILL" in up.output
    assert str(stack_directory / "logs" / "s3.log") in up.output
    assert processes_of(stack_directory) == []


def test_a_service_that_cannot_start_is_an_error_with_its_log(start_up: StartUp, stack_directory: Path) -> None:
    start_up(*LIGHTEST, "--", "true").ended()
    (stack_directory / "s3" / "buckets" / "analytics.json").write_text("{")
    up = start_up(*LIGHT)
    assert up.ended() == 1
    assert "s3" in up.output
    assert "analytics.json is damaged" in up.output
    assert processes_of(stack_directory) == []


@pytest.mark.parametrize("code", [0, 3])
def test_up_with_a_command_ends_with_its_exit_code(start_up: StartUp, stack_directory: Path, code: int) -> None:
    up = start_up(*LIGHTEST, "--", sys.executable, "-c", f"raise SystemExit({code})")
    assert up.ended() == code
    assert processes_of(stack_directory) == []


def test_a_command_killed_by_a_signal_gives_128_and_its_number(start_up: StartUp) -> None:
    up = start_up(*LIGHTEST, "--", sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    assert up.ended() == 128 + signal.SIGKILL


def test_the_command_runs_in_the_directory_of_its_caller_with_the_stack_in_its_environment(
    tmp_path: Path, stack_directory: Path, free_ports: list[str]
) -> None:
    program = "import os, json; print(json.dumps([os.getcwd(), dict(os.environ)]))"
    found = subprocess.run(
        [
            *(sys.executable, "-m", "dags.local", "up", "--directory", str(stack_directory), *free_ports, *LIGHTEST),
            *("--", sys.executable, "-c", program),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(services.PROJECT), "POSTGRES_PASSWORD": "a real one"},
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    working_directory, environment = json.loads(found.stdout)
    assert Path(working_directory) == tmp_path.resolve()
    assert environment["DEBUG"] == "1"
    assert environment["CLICKHOUSE_PORT"] == str(port_of(free_ports, "--clickhouse-port"))
    assert environment["OBJECT_STORAGE_ENDPOINT"] == f"http://127.0.0.1:{port_of(free_ports, '--s3-port')}"
    assert environment["POSTGRES_PASSWORD"] == ""


def test_a_command_that_does_not_exist_is_an_error_before_anything_starts(
    start_up: StartUp, stack_directory: Path
) -> None:
    up = start_up("--", "no-such-command-anywhere")
    assert up.ended() == 127
    assert not stack_directory.exists()


def test_a_signal_is_forwarded_to_the_command_which_may_finish_first(start_up: StartUp, tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, sys, time\n"
        f"signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path({str(tmp_path / 'signal')!r}).touch(), sys.exit(5)))\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "time.sleep(100)\n"
    )
    up = start_up(*LIGHTEST, "--", sys.executable, "-c", program)
    wait_until((tmp_path / "begun").exists, "the command runs")
    up.process.send_signal(signal.SIGTERM)
    assert up.ended() == 5
    assert (tmp_path / "signal").exists()


def test_the_third_signal_kills_a_command_that_ignores_them(start_up: StartUp, tmp_path: Path) -> None:
    program = (
        "import pathlib, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path / 'begun')!r}).touch()\n"
        "time.sleep(100)\n"
    )
    up = start_up(*LIGHTEST, "--", sys.executable, "-c", program)
    wait_until((tmp_path / "begun").exists, "the command runs")
    for _ in range(3):
        up.process.send_signal(signal.SIGINT)
        # Two equal signals at the same time arrive as one.
        time.sleep(0.5)
    assert up.ended() == 128 + signal.SIGKILL


def test_processes_that_a_command_leaves_running_are_stopped(start_up: StartUp, stack_directory: Path) -> None:
    marker = f"{stack_directory}/straggler"
    program = f"import subprocess, sys; subprocess.Popen(['sh', '-c', 'trap : TERM; sleep 100; true', '{marker}'])"
    up = start_up(*LIGHTEST, "--", sys.executable, "-c", program)
    assert up.ended() == 0
    assert processes_of(stack_directory) == []


def test_the_command_of_a_killed_supervisor_stops(start_up: StartUp, tmp_path: Path) -> None:
    write = f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))"
    program = f"import os, pathlib, time; {write}; time.sleep(100)"
    up = start_up(*LIGHTEST, "--", sys.executable, "-c", program)
    wait_until(lambda: (tmp_path / "pid").exists() and bool((tmp_path / "pid").read_text()), "the command runs")
    pid = int((tmp_path / "pid").read_text())
    up.process.kill()
    wait_until(lambda: not psutil.pid_exists(pid), "the command is gone")


def test_a_command_uses_the_running_stack_and_leaves_it_running(start_up: StartUp, stack_directory: Path) -> None:
    first = start_up(*LIGHTEST).ready()
    second = start_up(*LIGHTEST, "--", sys.executable, "-c", "raise SystemExit(4)")
    assert second.ended() == 4
    assert f"Using the stack that already runs on {stack_directory} (process {first.process.pid})" in second.output
    assert run("status", path=stack_directory).returncode == 0


def test_a_command_waits_for_a_stack_that_is_starting(start_up: StartUp, stack_directory: Path) -> None:
    start_up()
    wait_until((stack_directory / directory.STATE).exists, "the start has begun")
    second = start_up("--", "true")
    assert second.ended() == 0, second.output


def test_a_running_stack_that_lacks_a_service_is_not_used(start_up: StartUp) -> None:
    start_up(*LIGHTEST).ready()
    second = start_up(*LIGHT, "--", "true")
    assert second.ended() == 1
    assert "has no postgres" in second.output


def test_status_is_three_when_nothing_runs(stack_directory: Path) -> None:
    found = run("status", path=stack_directory)
    assert found.returncode == 3
    assert found.stdout == f"No stack runs on {stack_directory}.\n"


def test_status_is_one_when_a_service_does_not_answer(start_up: StartUp, stack_directory: Path) -> None:
    up = start_up(*LIGHT).ready()
    os.kill(up.pid_of("s3"), signal.SIGSTOP)
    try:
        found = run("status", path=stack_directory)
    finally:
        os.kill(up.pid_of("s3"), signal.SIGCONT)
    assert found.returncode == 1
    assert "not answering" in found.stdout


def test_wipe_refuses_while_the_stack_runs(start_up: StartUp, stack_directory: Path) -> None:
    up = start_up(*LIGHTEST).ready()
    found = run("wipe", "--yes", path=stack_directory)
    assert found.returncode == 1
    assert f"process {up.process.pid}" in found.stderr
    assert (stack_directory / "s3" / "buckets" / "analytics.json").exists()


def test_wipe_asks_and_keeps_everything_on_no(start_up: StartUp, stack_directory: Path) -> None:
    start_up(*LIGHTEST, "--", "true").ended()
    found = run("wipe", path=stack_directory, text="n\n")
    assert found.returncode == 1
    assert "s3  " in found.stdout
    assert (stack_directory / "s3").exists()


def test_wipe_erases_only_what_the_stack_created(start_up: StartUp, stack_directory: Path) -> None:
    start_up(*LIGHT, "--", "true").ended()
    (stack_directory / "notes.txt").write_text("mine")
    found = run("wipe", "--yes", path=stack_directory)
    assert found.returncode == 0, found.stderr
    assert [path.name for path in stack_directory.iterdir()] == ["notes.txt"]


def test_wipe_removes_an_otherwise_empty_directory(start_up: StartUp, stack_directory: Path) -> None:
    start_up(*LIGHTEST, "--", "true").ended()
    assert run("wipe", path=stack_directory, text="y\n").returncode == 0
    assert not stack_directory.exists()


def test_wipe_refuses_a_directory_that_the_stack_did_not_create(tmp_path: Path) -> None:
    (tmp_path / "clickhouse").mkdir()
    found = run("wipe", "--yes", path=tmp_path)
    assert found.returncode == 1
    assert "was not created by the local stack" in found.stderr
    assert (tmp_path / "clickhouse").exists()


def test_wipe_does_not_follow_a_link_out_of_the_directory(
    start_up: StartUp, stack_directory: Path, tmp_path: Path
) -> None:
    start_up(*LIGHTEST, "--", "true").ended()
    (tmp_path / "precious").write_text("mine")
    shutil.rmtree(stack_directory / "logs")
    (stack_directory / "logs").symlink_to(tmp_path)
    assert run("wipe", "--yes", path=stack_directory).returncode == 0
    assert (tmp_path / "precious").exists()


def test_postgres_keeps_its_rows_over_a_restart_and_a_kill(start_up: StartUp, free_ports: list[str]) -> None:
    import psycopg2

    def execute(statement: str) -> list[tuple[int]]:
        dsn = f"postgresql://postgres@127.0.0.1:{port_of(free_ports, '--postgres-port')}/analytics"
        with closing(psycopg2.connect(dsn)) as connection, connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []

    only = ("--services", "postgres")
    up = start_up(*only).ready()
    execute("CREATE TABLE kept (n int)")
    execute("INSERT INTO kept VALUES (1)")
    up.process.send_signal(signal.SIGTERM)
    up.ended()
    up = start_up(*only).ready()
    execute("INSERT INTO kept VALUES (2)")
    up.process.kill()
    up = start_up(*only).ready()
    execute("INSERT INTO kept VALUES (3)")
    os.kill(up.pid_of("postgres"), signal.SIGKILL)
    up.ended()
    start_up(*only).ready()
    assert execute("SELECT n FROM kept ORDER BY n") == [(1,), (2,), (3,)]


def test_a_directory_path_too_long_for_a_unix_socket_works(stack_directory: Path, free_ports: list[str]) -> None:
    deep = stack_directory / ("a" * 60) / ("b" * 60)
    found = subprocess.run(
        [
            *(sys.executable, "-m", "dags.local", "up", "--directory", str(deep), *free_ports),
            *("--services", "postgres", "--", "true"),
        ],
        cwd=services.PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
    )
    assert found.returncode == 0, found.stderr


def test_the_nodes_of_clickhouse_take_consecutive_ports() -> None:
    plan = StackPlan(directory=Path("/nowhere"), nodes=3, clickhouse_port=20000, kinds=("clickhouse",))
    assert [service.port for service in plan.services()] == [20000, 20001, 20002]
    assert "127.0.0.1:20000,127.0.0.1:20001,127.0.0.1:20002" in plan.services()[1].arguments
