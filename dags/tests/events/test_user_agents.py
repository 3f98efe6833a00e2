from pathlib import Path

import crawleruseragents
import pytest

from dags.events.user_agents import PATTERNS_OF_PEOPLE, UserAgent, parse_user_agent
from dags.tests.events.world import CHROME, IPHONE

IPAD = (
    "Mozilla/5.0 (iPad; CPU OS 16_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/16.6 Mobile/15E148 "
    "Safari/604.1"
)
ANDROID = (
    "Mozilla/5.0 (Linux; Android 14; Pixel 8) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/129.0.0.0 {}Safari/537.36"
)
FIREFOX = "Mozilla/5.0 (X11; Linux x86_64; rv:130.0) Gecko/20100101 Firefox/130.0"


@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        (CHROME, UserAgent("Chrome", "Windows", "Desktop", is_bot=False)),
        (IPHONE, UserAgent("Mobile Safari", "iOS", "Mobile", is_bot=False)),
        (IPAD, UserAgent("Mobile Safari", "iOS", "Tablet", is_bot=False)),
        (ANDROID.format("Mobile "), UserAgent("Chrome Mobile", "Android", "Mobile", is_bot=False)),
        (ANDROID.format(""), UserAgent("Chrome", "Android", "Tablet", is_bot=False)),
        (FIREFOX, UserAgent("Firefox", "Linux", "Desktop", is_bot=False)),
        ("something unknown", UserAgent("", "", "", is_bot=True)),
    ],
)
def test_an_agent_gives_browser_system_and_device(agent: str, expected: UserAgent) -> None:
    assert parse_user_agent(agent) == expected


@pytest.mark.parametrize(
    "agent",
    [
        "",
        "-",
        "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Mozilla/5.0 (compatible; bingbot/2.0; +http://www.bing.com/bingbot.htm)",
        "Mozilla/5.0 (compatible; Ezooms/1.0; help@example.com)",
        "Mozilla/5.0 (compatible; SiteExplorer/1.0b; +http://siteexplorer.example/)",
        "curl/8.5.0",
        "Wget/1.21",
        "python-requests/2.32",
        "Go-http-client/2.0",
        "Tiny Tiny RSS/1.11 (http://tt-rss.org/)",
        "UniversalFeedParser/4.2-pre-314-svn +http://feedparser.org/",
        "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) HeadlessChrome/129.0 Safari/537.36",
        "Mozilla/5.0 (compatible; YandexImages/3.0; +http://yandex.com/bots)",
        "ELB-HealthChecker/2.0",
        "kube-probe/1.27",
        "GoogleHC/1.0",
        "Consul Health Check",
        "Envoy/HC",
        "Amazon-Route53-Health-Check-Service (ref 1; report http://amzn.to/1vsZADi)",
        "Pingdom.com_bot_version_1.4_(http://www.pingdom.com/)",
        "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
        "Better Uptime Bot Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/129.0 Safari/537.36",
        "Prometheus/2.53.0",
        "check_http/v2.2.1 (nagios-plugins 2.2.1)",
        "Mozilla/5.0 zgrab/0.x",
        "masscan/1.3 (https://github.com/robertdavidgraham/masscan)",
        "sqlmap/1.8 (https://sqlmap.org)",
        "Expanse, a Palo Alto Networks company, searches across the global IPv4 space",
        "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
        "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko); compatible; ChatGPT-User/1.0; +https://openai.com/bot",
        "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
        "Mozilla/5.0 (compatible; PerplexityBot/1.0; +https://perplexity.ai/perplexitybot)",
        "Mozilla/5.0 (Linux; Android 5.0) AppleWebKit/537.36 Mobile Safari/537.36 (compatible; Bytespider)",
        "CCBot/2.0 (https://commoncrawl.org/faq/)",
        "meta-externalagent/1.1 (+https://developers.facebook.com/docs/sharing/webmasters/crawler)",
        "Safari/20620.1 CFNetwork/3826.400 Darwin/24.3.0",
    ],
)
def test_a_program_and_an_agent_without_a_name_are_bots(agent: str) -> None:
    assert parse_user_agent(agent).is_bot


BROWSERS = Path(__file__).with_name("browsers.txt").read_text().splitlines()


@pytest.mark.parametrize("agent", BROWSERS)
def test_the_browser_of_a_person_is_no_bot(agent: str) -> None:
    parsed = parse_user_agent(agent)
    assert not parsed.is_bot
    assert parsed.device_type


def test_at_most_one_crawler_in_twenty_is_taken_for_a_person() -> None:
    """The patterns are made for these instances: bench/user_agents.py says how many are found without them."""
    crawlers = [
        instance
        for crawler in crawleruseragents.CRAWLER_USER_AGENTS_DATA
        if crawler["pattern"] not in PATTERNS_OF_PEOPLE
        for instance in crawler.get("instances", [])
    ]
    missed = [agent for agent in crawlers if not parse_user_agent(agent).is_bot]
    assert len(crawlers) > 1000
    assert len(missed) <= len(crawlers) / 20


def test_the_excepted_patterns_are_patterns_of_the_package() -> None:
    assert {crawler["pattern"] for crawler in crawleruseragents.CRAWLER_USER_AGENTS_DATA} >= PATTERNS_OF_PEOPLE
