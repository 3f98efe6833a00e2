"""How often a browser is taken for a bot, and a crawler for a person, by their user agents.

Run: `python bench/user_agents.py` (seconds). The crawlers are the instances of the package crawler-user-agents, the
browsers those of `dags/tests/events/browsers.txt`. The package's patterns are made for its instances, so that their
figure says little about unknown crawlers: the figure "without_patterns" is that of ua-parser and our own rules alone.

`--crawlers FILE --browsers FILE` measure other agents, one per line, such as `tests/data/user_agent/crawlers.txt` of
JayBizzle/Crawler-Detect, or the `user_agent` entries of a fixture of matomo-org/device-detector. The output ends with
one line per figure: `name value unit aim AIM ok|short`.
"""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import crawleruseragents
from measuring import ROOT, Figures, seconds_of

from dags.events import user_agents
from dags.events.user_agents import parse_user_agent

BROWSERS = ROOT / "dags/tests/events/browsers.txt"
MAX_BROWSERS_PERCENT, MAX_CRAWLERS_PERCENT = 1.0, 5.0


def agents_of(file: Path) -> list[str]:
    """Return the agents of a file: its lines, or the user_agent entries of a YAML file."""
    lines = file.read_text().splitlines()
    if file.suffix in {".yml", ".yaml"}:
        entries = [found[1] for line in lines if (found := re.match(r"\s*-?\s*user_agent: (.+)", line))]
        return [entry.strip().strip("'\"") for entry in entries]
    return [line for line in lines if line]


def percent(agents: Sequence[str], is_wrong: Callable[[str], bool]) -> float:
    """Return the percentage of the agents that are classified wrongly."""
    return 100 * sum(map(is_wrong, agents)) / len(agents)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crawlers", type=Path, nargs="*", default=[], help="files of more crawlers")
    parser.add_argument("--browsers", type=Path, nargs="*", default=[], help="files of more browsers")
    arguments = parser.parse_args()
    instances = [one for crawler in crawleruseragents.CRAWLER_USER_AGENTS_DATA for one in crawler.get("instances", [])]
    browsers = {"browsers": BROWSERS} | {f"browsers_{file.stem}": file for file in arguments.browsers}
    crawlers = {"crawlers": instances} | {f"crawlers_{file.stem}": agents_of(file) for file in arguments.crawlers}
    figures = Figures()
    for name, file in browsers.items():
        agents = agents_of(file)
        figures.add(f"{name}_measured", len(agents), "agents")
        wrong = percent(agents, lambda agent: parse_user_agent(agent).is_bot)
        figures.add(f"{name}_taken_for_bots", wrong, "percent", at_most=MAX_BROWSERS_PERCENT)
    for name, agents in crawlers.items():
        figures.add(f"{name}_measured", len(agents), "agents")
        wrong = percent(agents, lambda agent: not parse_user_agent(agent).is_bot)
        figures.add(f"{name}_taken_for_people", wrong, "percent", at_most=MAX_CRAWLERS_PERCENT)
    everything = list(dict.fromkeys(agent for agents in crawlers.values() for agent in agents))
    parse_user_agent.cache_clear()
    seconds = seconds_of(lambda: [parse_user_agent(agent) for agent in everything])
    figures.add("seconds_of_10000_distinct_agents", 10_000 * seconds / len(everything), "s")
    nothing = re.compile(r"(?!)")
    user_agents._crawlers = lambda: nothing  # noqa: SLF001 - what the package's patterns add is the question
    parse_user_agent.cache_clear()
    for name, agents in crawlers.items():
        wrong = percent(agents, lambda agent: not parse_user_agent(agent).is_bot)
        figures.add(f"{name}_taken_for_people_without_patterns", wrong, "percent")
    figures.print_all()


if __name__ == "__main__":
    main()
