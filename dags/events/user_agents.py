"""Browser, system, device and bot of a user agent, by ua-parser's pattern data and three rules of our own.

Agents are few where lines are many: an object's distinct agents are parsed once each, here, and joined back in
ClickHouse. A regexp-tree dictionary in the engine would need the patterns as a file on every server, or in a table
that is kept up to date; the package brings them with its version, fixed by the lock.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ua_parser import Parser

# Programs that ua-parser does not call spiders: libraries, monitors, feed readers, and who
# gives an address to write to.
BOT = re.compile(
    r"bot\b|bot/|crawl|spider|slurp|archiver|fetch|scan|monitor|preview|validator|feed|rss|headless|phantomjs|lighthouse"
    r"|curl|wget|libwww|python|java/|ruby|perl|php|go-http|okhttp|axios|node|http_request|httpclient|apachebench|https?://|@\w",
    re.IGNORECASE,
)
DESKTOP_SYSTEMS = re.compile(
    r"Windows(?! Phone| CE| Mobile)|Mac OS|Linux|Ubuntu|Fedora|Debian|Chrome OS|BSD|Solaris|SUSE|Mint"
)
TABLET = re.compile(r"iPad|Tablet|Kindle|Silk/|PlayBook|Nexus (?:7|9|10)\b")
MOBILE_SYSTEMS = re.compile(
    r"Android|iOS|Windows Phone|Windows Mobile|BlackBerry|Symbian|Firefox OS|webOS|KaiOS|Bada|Tizen"
)
UNKNOWN = "Other"


@dataclass(frozen=True)
class UserAgent:
    """What an agent string says. Texts are empty when unknown."""

    browser: str
    os: str
    device_type: str
    is_bot: bool


def parse_user_agents(agents: Iterable[str]) -> Iterator[tuple[str, UserAgent]]:
    """Each agent with what it says."""
    for agent in agents:
        yield agent, parse_user_agent(agent)


def parse_user_agent(agent: str) -> UserAgent:
    """What an agent says. One that is empty or `-` is a bot: browsers name themselves."""
    parsed = _parser().parse(agent)
    browser = parsed.user_agent.family if parsed.user_agent else ""
    system = parsed.os.family if parsed.os else ""
    device = parsed.device.family if parsed.device else ""
    is_bot = agent in {"", "-"} or device == "Spider" or BOT.search(agent) is not None
    return UserAgent(
        browser="" if browser == UNKNOWN else browser,
        os="" if system == UNKNOWN else system,
        device_type="" if is_bot else _device_type(agent, system),
        is_bot=is_bot,
    )


def _device_type(agent: str, system: str) -> str:
    # Android tablets are those that do not say Mobile, by Google's own rule.
    if TABLET.search(agent) or (system == "Android" and "Mobile" not in agent):
        return "Tablet"
    if MOBILE_SYSTEMS.search(system):
        return "Mobile"
    return "Desktop" if DESKTOP_SYSTEMS.search(system) else ""


@cache
def _parser() -> "Parser":
    import ua_parser

    return ua_parser.parser
