"""Browser, operating system and device type of a user agent, and whether it is a bot.

The patterns are those of the ua-parser package, pinned in the lock file, and three of our own. Each distinct agent of a
batch is parsed once here and joined in ClickHouse. A regexp-tree dictionary would need the patterns on every server.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ua_parser import Parser

# Programs that ua-parser does not classify as spiders: libraries, monitors, feed readers, and agents with a contact
# address.
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
    """The parts of a user agent string. Unknown parts are empty."""

    browser: str
    os: str
    device_type: str
    is_bot: bool


def parse_user_agents(agents: Iterable[str]) -> Iterator[tuple[str, UserAgent]]:
    """Yield each agent with its parts."""
    for agent in agents:
        yield agent, parse_user_agent(agent)


def parse_user_agent(agent: str) -> UserAgent:
    """Parse a user agent. An empty one or `-` is a bot, because every browser sends its name."""
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
    # Google's rule: an Android device without "Mobile" in its agent is a tablet.
    if TABLET.search(agent) or (system == "Android" and "Mobile" not in agent):
        return "Tablet"
    if MOBILE_SYSTEMS.search(system):
        return "Mobile"
    return "Desktop" if DESKTOP_SYSTEMS.search(system) else ""


@cache
def _parser() -> "Parser":
    import ua_parser

    return ua_parser.parser
