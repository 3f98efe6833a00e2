"""Each question of docs/web-tables.md, answered from the sessions and from the raw events.

Run: `python bench/web_queries.py` (some minutes; `--events 500000` for a smaller one). On events of one team and 30
days (5 events per session), whose sessions are computed first, it asks each question of all 30 days in Asia/Kolkata:
with the query of the page, and with the same question of the raw events. The answers must be equal.

Each time is the best of three, both in turns. The output ends with one line per figure: `name value unit aim AIM
ok|short`.
"""

import argparse
import datetime as dt
import math
import re
import tempfile
import uuid
from pathlib import Path

from clickhouse_driver import Client
from measuring import Figures, node, seconds_of
from web_preaggregated import FIRST, database, fill

from dags.tests.web_preaggregated.questions import Question, questions
from dags.web_preaggregated.aggregate import pre_aggregate

EVENTS = 5_000_000
DAYS = 30
ROUNDS = 3
TEAM = 1
TIME_ZONE = "Asia/Kolkata"
MIN_TIMES_FASTER = 10
# The steps of the funnel, as the events have them.
PATHS = {"'/'": "'/blog/0'", "'/product/1'": "'/product/0'", "'/docs/1'": "'/docs/0'"}


def asked() -> list[Question]:
    """Return the questions over all days; the comparison is of the second half with the first."""
    last = FIRST + dt.timedelta(days=DAYS)
    whole = questions(TEAM, FIRST, last, TIME_ZONE)
    half = questions(TEAM, FIRST + dt.timedelta(days=DAYS // 2), last, TIME_ZONE)
    found = [second if "web_comparison" in first.query else first for first, second in zip(whole, half, strict=True)]
    return [Question(one.title, _with_paths(one.query), _with_paths(one.raw)) for one in found]


def _with_paths(query: str) -> str:
    for written, wanted in PATHS.items():
        query = query.replace(written, wanted)
    return query


def assert_equal(question: Question, client: Client) -> None:
    """Compare the answers of both queries."""
    answer, expected = client.execute(question.query), client.execute(question.raw)
    assert answer, f"{question.title}: there is no answer"
    assert len(answer) == len(expected), question.title
    for row, wanted in zip(answer, expected, strict=True):
        for found, value in zip(row, wanted, strict=True):
            is_equal = math.isclose(found, value) if isinstance(found, float) else found == value
            assert is_equal, f"{question.title}: {row} instead of {wanted}"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=EVENTS, help="events over the 30 days")
    arguments = parser.parse_args()
    figures = Figures()
    with (
        tempfile.TemporaryDirectory() as directory,
        node(Path(directory) / "node") as (port, _),
        database(port) as (cluster, client),
    ):
        fill(client, arguments.events, DAYS, teams=1)
        days = [FIRST + dt.timedelta(days=n) for n in range(-1, DAYS + 1)]
        computing = seconds_of(lambda: pre_aggregate(cluster, days, run_id=str(uuid.uuid4())))
        figures.add("computing_30_days", computing, "s")
        for name, table in (("events", "events"), ("sessions", "web_sessions")):
            size = "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = currentDatabase() AND table"
            ((stored,),) = client.execute(f"{size} = '{table}'")
            figures.add(f"{name}_on_disk", stored / 2**20, "MiB")
        for question in asked():
            assert_equal(question, client)
            times, raw_times = [], []
            for _ in range(ROUNDS):
                times.append(seconds_of(lambda query=question.query: client.execute(query)))
                raw_times.append(seconds_of(lambda query=question.raw: client.execute(query)))
            print(f"  {1000 * min(times):.1f} ms instead of {1000 * min(raw_times):.1f} ms", flush=True)
            name = re.sub(r"[^a-z]+", "_", question.title.lower()).strip("_")
            figures.add(name, min(raw_times) / min(times), "times faster", at_least=MIN_TIMES_FASTER)
    figures.print_all()


if __name__ == "__main__":
    main()
