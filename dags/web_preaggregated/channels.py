"""The channel of a session: the kind of its source, by rules on campaign, click ids and referring host.

The first rule that holds counts, in the order of `_RULES`, which follows the default channel groups of Google
Analytics. Texts are compared in lower case. A click id of Google Ads (`gclid`, `gad_source`) makes a session paid;
`fbclid` does not, because Facebook adds it to every link. Lists are of this module: PyPI has no maintained data.
"""

# The channel of a campaign that no rule knows.
OTHER_CAMPAIGN = "Other Campaign"

# Registered names of hosts; every host below them belongs to them. `google.*` stands for every country's.
SEARCH_HOSTS = (
    "google.*",
    "bing.com",
    "yahoo.*",
    "search.yahoo.co.jp",
    "duckduckgo.com",
    "yandex.*",
    "ya.ru",
    "baidu.com",
    "so.com",
    "sogou.com",
    "ecosia.org",
    "qwant.com",
    "startpage.com",
    "search.brave.com",
    "kagi.com",
    "mojeek.com",
    "swisscows.com",
    "metager.org",
    "metager.de",
    "naver.com",
    "daum.net",
    "seznam.cz",
    "search.aol.com",
    "ask.com",
    "dogpile.com",
    "lycos.com",
    "search.marginalia.nu",
    "search.lilo.org",
    "rambler.ru",
    "virgilio.it",
    "coccoc.com",
)
SOCIAL_HOSTS = (
    "facebook.com",
    "fb.com",
    "fb.me",
    "instagram.com",
    "threads.net",
    "threads.com",
    "twitter.com",
    "x.com",
    "t.co",
    "linkedin.com",
    "lnkd.in",
    "reddit.com",
    "redd.it",
    "pinterest.*",
    "pin.it",
    "tumblr.com",
    "snapchat.com",
    "vk.com",
    "ok.ru",
    "weibo.com",
    "weixin.qq.com",
    "bsky.app",
    "mastodon.social",
    "news.ycombinator.com",
    "lobste.rs",
    "quora.com",
    "medium.com",
    "discord.com",
    "discordapp.com",
    "t.me",
    "telegram.org",
    "web.whatsapp.com",
    "wa.me",
    "messenger.com",
    "slack.com",
    "line.me",
    "producthunt.com",
    "stackoverflow.com",
    "stackexchange.com",
    "xing.com",
    "nextdoor.com",
)
VIDEO_HOSTS = (
    "youtube.com",
    "youtu.be",
    "youtube-nocookie.com",
    "vimeo.com",
    "dailymotion.com",
    "twitch.tv",
    "tiktok.com",
    "bilibili.com",
    "netflix.com",
    "rutube.ru",
)
SHOPPING_HOSTS = (
    "shopping.google.com",
    "amazon.*",
    "ebay.*",
    "etsy.com",
    "aliexpress.com",
    "alibaba.com",
    "walmart.com",
    "shop.app",
    "idealo.de",
    "mercadolibre.com",
    "shopzilla.com",
)
EMAIL_HOSTS = (
    "mail.google.com",
    "mail.yahoo.com",
    "mail.yahoo.co.jp",
    "mail.ru",
    "mail.proton.me",
    "mail.yandex.*",
    "mail.aol.com",
    "outlook.live.com",
    "outlook.office.com",
    "outlook.office365.com",
    "gmx.net",
    "webmail.*",
    "com.google.android.gm",
)
ASSISTANT_HOSTS = (
    "chatgpt.com",
    "chat.openai.com",
    "perplexity.ai",
    "claude.ai",
    "gemini.google.com",
    "bard.google.com",
    "copilot.microsoft.com",
    "chat.deepseek.com",
    "chat.mistral.ai",
    "grok.com",
    "you.com",
    "phind.com",
    "poe.com",
    "meta.ai",
)

# Values of utm_source, beside the hosts above.
SEARCH_SOURCES = (
    "google",
    "google-ads",
    "googleads",
    "adwords",
    "bing",
    "bingads",
    "yahoo",
    "duckduckgo",
    "yandex",
    "baidu",
    "ecosia",
    "naver",
    "seznam",
    "qwant",
    "brave",
)
SOCIAL_SOURCES = (
    "facebook",
    "fb",
    "ig",
    "instagram",
    "meta",
    "threads",
    "twitter",
    "x",
    "linkedin",
    "reddit",
    "pinterest",
    "tumblr",
    "snapchat",
    "vk",
    "vkontakte",
    "weibo",
    "wechat",
    "bluesky",
    "bsky",
    "mastodon",
    "hackernews",
    "hn",
    "quora",
    "discord",
    "telegram",
    "whatsapp",
    "slack",
    "producthunt",
)
VIDEO_SOURCES = ("youtube", "yt", "vimeo", "dailymotion", "twitch", "tiktok")
SHOPPING_SOURCES = ("amazon", "ebay", "etsy", "walmart", "shopify", "aliexpress", "idealo", "google-shopping")
EMAIL_SOURCES = ("email", "e-mail", "e_mail", "mail", "newsletter", "mailchimp", "klaviyo", "hubspot_email", "sendgrid")
ASSISTANT_SOURCES = ("chatgpt", "openai", "perplexity", "claude", "gemini", "copilot", "deepseek", "mistral", "grok")

# Regular expressions of RE2 for utm_medium.
PAID_MEDIUM = r"^(.*cp.*|ppc|retargeting|remarketing|paid.*|sem)$"
DISPLAY_MEDIUM = r"^(display|banner|expandable|interstitial|cpm|programmatic|native)$"
SOCIAL_MEDIUM = r"^(social|social-network|social-media|social_media|sm|social network|social media|organic.?social)$"
EMAIL_MEDIUM = r"^(e[-_ ]?mail|newsletter|mailing|crm.?email)$"
AFFILIATE_MEDIUM = r"^(affiliates?|partner|affiliate.?marketing)$"
REFERRAL_MEDIUM = r"^(referral|app|link)$"
VIDEO_MEDIUM = r".*video.*"
AUDIO_MEDIUM = r"^(audio|podcast)$"
PUSH_MEDIUM = r"(.*push$|.*mobile.*|.*notification.*)"
SHOPPING_CAMPAIGN = r"^(.*(([^a-df-z]|^)shop|shopping).*)$"
CROSS_NETWORK_CAMPAIGN = r"cross[-_ ]?network"


def channel_expression() -> str:
    """Return the SQL expression of the channel from the columns of a session, as its table names them."""
    rules = ", ".join(f"{rule}, '{channel}'" for channel, rule in _RULES)
    return f"multiIf({rules}, '{OTHER_CAMPAIGN}')"


def _matches(column: str, pattern: str) -> str:
    return "match(lower({}), '{}')".format(column, pattern.replace("\\", "\\\\"))


def _is_below(hosts: tuple[str, ...]) -> str:
    names = "|".join(host.replace(".", "[.]").replace("[.]*", "([.][a-z]{2,4}){1,2}") for host in hosts)
    return _matches("referring_domain", f"(^|[.])({names})$")


def _is_one_of(values: tuple[str, ...]) -> str:
    listed = ", ".join(f"'{value}'" for value in values)
    return f"lower(utm_source) IN ({listed})"


def _is_of(hosts: tuple[str, ...], sources: tuple[str, ...]) -> str:
    """Return the condition of a source; the campaign's name counts before the host that led here."""
    as_host = _is_below(hosts).replace("referring_domain", "utm_source")
    return f"if(utm_source != '', {_is_one_of(sources)} OR {as_host}, {_is_below(hosts)})"


def _medium(pattern: str) -> str:
    return _matches("utm_medium", pattern)


_SEARCH = _is_of(SEARCH_HOSTS, SEARCH_SOURCES)
_SOCIAL = _is_of(SOCIAL_HOSTS, SOCIAL_SOURCES)
_VIDEO = _is_of(VIDEO_HOSTS, VIDEO_SOURCES)
_SHOPPING = _is_of(SHOPPING_HOSTS, SHOPPING_SOURCES)
_EMAIL = _is_of(EMAIL_HOSTS, EMAIL_SOURCES)
_ASSISTANT = _is_of(ASSISTANT_HOSTS, ASSISTANT_SOURCES)
_PAID = f"({_medium(PAID_MEDIUM)} OR has_gclid OR has_gad_source)"
_UNTAGGED = "utm_source = '' AND utm_medium = '' AND utm_campaign = ''"
# A session that goes on after its end is referred by the site itself.
_NO_REFERRER = "referring_domain IN ('', '$direct') OR referring_domain = entry_host"

# Mail and assistants of a search company come before its search. Without any trace a session is direct.
_RULES = (
    ("Direct", f"({_NO_REFERRER}) AND {_UNTAGGED} AND NOT (has_gclid OR has_gad_source OR has_fbclid)"),
    ("Cross-network", _matches("utm_campaign", CROSS_NETWORK_CAMPAIGN)),
    ("Paid Shopping", f"{_PAID} AND ({_SHOPPING} OR {_matches('utm_campaign', SHOPPING_CAMPAIGN)})"),
    ("Paid Social", f"{_PAID} AND {_SOCIAL}"),
    ("Paid Video", f"{_PAID} AND {_VIDEO}"),
    ("Display", _medium(DISPLAY_MEDIUM)),
    ("Paid Search", f"{_PAID} AND ({_SEARCH} OR has_gclid OR has_gad_source)"),
    ("Paid Other", _PAID),
    ("Email", f"{_medium(EMAIL_MEDIUM)} OR {_EMAIL}"),
    ("Affiliates", _medium(AFFILIATE_MEDIUM)),
    ("SMS", "lower(utm_medium) = 'sms' OR lower(utm_source) = 'sms'"),
    ("Audio", _medium(AUDIO_MEDIUM)),
    ("Mobile Push", f"{_medium(PUSH_MEDIUM)} OR lower(utm_source) = 'firebase'"),
    ("AI Assistant", _ASSISTANT),
    ("Organic Shopping", f"{_SHOPPING} OR {_matches('utm_campaign', SHOPPING_CAMPAIGN)}"),
    ("Organic Social", f"{_medium(SOCIAL_MEDIUM)} OR {_SOCIAL} OR (has_fbclid AND utm_source = '')"),
    ("Organic Video", f"{_medium(VIDEO_MEDIUM)} OR {_VIDEO}"),
    ("Organic Search", f"lower(utm_medium) = 'organic' OR {_SEARCH}"),
    ("Referral", f"{_medium(REFERRAL_MEDIUM)} OR NOT ({_NO_REFERRER})"),
)
