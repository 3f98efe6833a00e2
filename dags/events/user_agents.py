"""Browser, operating system and device type of a user agent, and whether it is a bot.

Browsers, systems and devices are those of the package ua-parser, crawlers those of crawler-user-agents, both
pinned in the lock file. Each distinct agent of a batch is parsed once here and joined in ClickHouse. A regexp-tree
dictionary would need the patterns on every server.

An agent is a bot if one of these holds; `bench/user_agents.py` measures them:

- it is empty, because every browser sends its name;
- ua-parser classifies it as a spider, or a pattern of crawler-user-agents matches it;
- it has a word of programs, such as "health check", "monitor" or "curl", or the address of a page or a mailbox;
- neither its browser nor its system is known;
- it is a program for desktops that does not say that it is compatible with a browser, such as Microsoft Office.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ua_parser import Parser

# Matched against the agent in lower case. CUBOT is a brand of phones, Caboto a bank, and "Ecosia ios@9.2" no address.
BOT_WORDS = re.compile(
    r"(?<!\bcu)bots?(?![a-z])|robot|crawl|spider|slurp|archiver|fetch(?:er)?\b|scan(?:ner)?\b|check(?:er)?\b|\bprobe\b"
    r"|monitor(?:ing)?\b|uptime|synthetic|inspect(?:or)?\b|verif(?:y|ier|ication)\b|thumb(?:nail)?s?\b|screenshot"
    r"|preview\b|validator|\bfeed|\brss|rss/|headless|phantomjs|lighthouse|page ?speed|\bptst\b|curl|wget|libwww"
    r"|\bpython|\bjava/|\bruby|\bperl\b|\bphp\b|go-http|okhttp|axios|\bnode(?:js|-|/)|http_?client|http_request"
    r"|apachebench|\bsiege\b|wkhtmlto|\bgoogle[ -](?!app|play|pixel|earth)\w|https?://|\bwww\.|[\w.]@[\w-]+\.[a-z]"
)
# Patterns of the package that also match people: a search app, a brand of tablets, a browser for single sites, the
# browsers inside Facebook, Tumblr and Viber, and a browser for Kindles.
PATTERNS_OF_PEOPLE = frozenset({"Sogou", "Sonic", "Fluid", "MetaIAB Facebook", r"Tumblr\/", "Viber", r"^Silk\/"})
NOT_SPIDERS = re.compile(r"\bcubot\b|\bcaboto\b")
# Devices whose browsers ua-parser may not know: phones that are older than smartphones, consoles and televisions.
OTHER_DEVICES = re.compile(r"\bmidp|\bcldc|up\.browser|obigo|netfront|browser/maui|playstation|nintendo|hbbtv|ce-html")
# Every browser of the last decades says so first, for compatibility.
BROWSER_STARTS = ("mozilla/", "opera/")
DESKTOP_SYSTEMS = re.compile(
    r"Windows(?! Phone| CE| Mobile)|Mac OS|Linux|Ubuntu|Fedora|Debian|Chrome OS|BSD|Solaris|SUSE|Mint"
)
TABLET = re.compile(r"iPad|Tablet|Kindle|Silk/|PlayBook|Nexus (?:7|9|10)\b")
MOBILE_SYSTEMS = re.compile(
    r"Android|iOS|Windows Phone|Windows Mobile|BlackBerry|Symbian|Firefox OS|webOS|KaiOS|Bada|Tizen"
)
UNKNOWN = "Other"
# In place of the agent when the format of the log has none, which says nothing about the visitor.
NOT_LOGGED = "<not logged>"
# A run loads many batches, and most of their agents are the same.
MAX_CACHED_AGENTS = 50_000


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


@lru_cache(maxsize=MAX_CACHED_AGENTS)
def parse_user_agent(agent: str) -> UserAgent:
    """Parse a user agent. An empty one or `-` is a bot."""
    if agent == NOT_LOGGED:
        return UserAgent("", "", "", is_bot=False)
    parsed = _parser().parse(agent)
    browser = parsed.user_agent.family if parsed.user_agent else UNKNOWN
    system = parsed.os.family if parsed.os else UNKNOWN
    is_spider = parsed.device is not None and parsed.device.family == "Spider"
    is_bot = agent in {"", "-"} or _is_bot(agent, browser, system, is_spider=is_spider)
    return UserAgent(
        browser="" if browser == UNKNOWN else browser,
        os="" if system == UNKNOWN else system,
        device_type="" if is_bot else _device_type(agent, system),
        is_bot=is_bot,
    )


def _is_bot(agent: str, browser: str, system: str, *, is_spider: bool) -> bool:
    lower = agent.lower()
    if is_spider and NOT_SPIDERS.search(lower) is None:
        return True
    if browser == UNKNOWN and system == UNKNOWN and OTHER_DEVICES.search(lower) is None:
        return True
    if not lower.startswith(BROWSER_STARTS) and (
        "cfnetwork/" in lower or (browser == UNKNOWN and DESKTOP_SYSTEMS.search(system) is not None)
    ):
        return True
    return BOT_WORDS.search(lower) is not None or _crawlers().search(agent) is not None


def _device_type(agent: str, system: str) -> str:
    # Google's rule: an Android device without "Mobile" in its agent is a tablet.
    if TABLET.search(agent) or (system == "Android" and "Mobile" not in agent):
        return "Tablet"
    if MOBILE_SYSTEMS.search(system):
        return "Mobile"
    return "Desktop" if DESKTOP_SYSTEMS.search(system) else ""


@cache
def _crawlers() -> re.Pattern[str]:
    """Return one pattern of the 1,500 of the package.

    Grouped by their first letter, they are found twelve times as fast as in the order of the package.
    """
    import crawleruseragents

    groups: dict[str, list[str]] = {}
    others = []
    for pattern in (crawler["pattern"] for crawler in crawleruseragents.CRAWLER_USER_AGENTS_DATA):
        if pattern in PATTERNS_OF_PEOPLE:
            continue
        if re.match(r"[A-Za-z0-9](?![?*+{])(?!.*\|)", pattern):
            groups.setdefault(pattern[0], []).append(pattern[1:])
        else:
            others.append(f"(?:{pattern})")
    return re.compile("|".join([f"{first}(?:{'|'.join(rest)})" for first, rest in groups.items()] + others))


@cache
def _parser() -> "Parser":
    import ua_parser

    return ua_parser.parser
