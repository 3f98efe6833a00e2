import pytest

from dags.events.user_agents import UserAgent, parse_user_agent
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
        ("something nobody knows", UserAgent("", "", "", is_bot=False)),
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
    ],
)
def test_a_program_and_an_agent_without_a_name_are_bots(agent: str) -> None:
    assert parse_user_agent(agent).is_bot
