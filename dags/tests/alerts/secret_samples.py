"""Random secrets of each kind, for tests that plant them in errors."""

import base64
import random
import string
from collections.abc import Callable

LETTERS_AND_DIGITS = string.ascii_letters + string.digits

# What is drawn is the secret; what it stands in is what people and libraries write.
Planted = tuple[str, str]


def drawn(chance: random.Random, length: int, alphabet: str = LETTERS_AND_DIGITS) -> str:
    """Return characters of an alphabet, including a digit and a capital letter."""
    return "7Q" + "".join(chance.choices(alphabet, k=length - 2))


def jwt(chance: random.Random) -> Planted:
    """Return a JSON web token."""
    header = base64.urlsafe_b64encode(b'{"alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    body = base64.urlsafe_b64encode(f'{{"sub":"{drawn(chance, 12)}"}}'.encode()).decode().rstrip("=")
    secret = f"{header}.{body}.{drawn(chance, 43)}"
    return secret, secret


def pem(chance: random.Random) -> Planted:
    """Return a private key. Each of its lines is a secret; the last one is returned as the secret."""
    lines = [drawn(chance, 64, LETTERS_AND_DIGITS + "+/") for _ in range(6)]
    kind = chance.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "OPENSSH PRIVATE KEY", "EC PRIVATE KEY"])
    line_end = chance.choice(["\n", "\\n"])
    text = line_end.join([f"-----BEGIN {kind}-----", *lines, f"-----END {kind}-----"])
    return lines[-1], text


def token(pattern: str, length: int, alphabet: str = LETTERS_AND_DIGITS) -> Callable[[random.Random], Planted]:
    """Return a token that is recognized by its prefix."""

    def made(chance: random.Random) -> Planted:
        secret = pattern + drawn(chance, length, alphabet)
        return secret, secret

    return made


def within(*templates: str, alphabet: str = LETTERS_AND_DIGITS) -> Callable[[random.Random], Planted]:
    """Return a secret that is recognized only by the text around it."""

    def made(chance: random.Random) -> Planted:
        secret = drawn(chance, chance.randrange(8, 30), alphabet)
        return secret, chance.choice(templates).format(secret)

    return made


CAPITALS_AND_DIGITS = string.ascii_uppercase + string.digits
KINDS: dict[str, Callable[[random.Random], Planted]] = {
    "Slack bot token": token("xoxb-123456789012-", 24),
    "Slack app token": token("xapp-1-A012-", 40),
    "Slack refresh token": token("xoxe.xoxp-1-", 60),
    "Slack webhook": within("https://hooks.slack.com/services/T012/B012/{}"),
    "AWS key id": token("AKIA", 16, CAPITALS_AND_DIGITS),
    "AWS session key id": token("ASIA", 16, CAPITALS_AND_DIGITS),
    "AWS secret key": within(
        "aws_secret_access_key = {}", "AWS_SECRET_ACCESS_KEY={}", '"SecretAccessKey": "{}"', alphabet="aZ/+9"
    ),
    "signed address": within(
        "https://b.s3.amazonaws.com/k?X-Amz-Signature={}&X-Amz-Date=1", "https://x.blob/k?sv=1&sig={}"
    ),
    "GitHub token": token("ghp_", 36),
    "GitHub app token": token("ghs_", 36),
    "GitHub fine-grained token": token("github_pat_", 80, LETTERS_AND_DIGITS + "_"),
    "GitLab token": token("glpat-", 20, LETTERS_AND_DIGITS + "_-"),
    "Google key": token("AIza", 35, LETTERS_AND_DIGITS + "_-"),
    "Google token": token("ya29.", 60, LETTERS_AND_DIGITS + "_-"),
    "Stripe key": token("sk_live_", 24),
    "Stripe restricted key": token("rk_test_", 24),
    "Stripe webhook secret": token("whsec_", 32),
    "OpenAI key": token("sk-", 48),
    "OpenAI project key": token("sk-proj-", 100, LETTERS_AND_DIGITS + "_-"),
    "Anthropic key": token("sk-ant-api03-", 90, LETTERS_AND_DIGITS + "_-"),
    "JWT": jwt,
    "PEM block": pem,
    "bearer": within("Authorization: Bearer {}", "headers={{'Authorization': 'Bearer {}'}}", "bearer {}"),
    "basic": within("Authorization: Basic {}==", "'authorization': 'Basic {}='"),
    "password in settings": within(
        "password={}",
        "PGPASSWORD={} psql",
        "db.password = {}",
        "?user=x&password={}&ssl=1",
        "host=h password={} port=1",
    ),
    "password in JSON": within(
        '{{"password": "{}"}}', '"api_key":"{}"', '{{\\"client_secret\\": \\"{}\\"}}', '"refresh_token" : "{}"'
    ),
    "password in Python": within(
        "connect(password='{}')", "{{'secret': '{}'}}", "token=b'{}'", "('passwd', '{}')", 'Config(api_key="{}", n=1)'
    ),
    "password in YAML": within(
        "password: {}\nuser: x", "  secret_key: '{}'", "passphrase: |\n    {}\n", "db:\n  pwd: {} # the password\n"
    ),
    "password of an option": within("--password {}", "--api-token={}", "mysql --password={} -h x"),
    "password in XML": within("<password>{}</password>", "<v:Secret>{}</v:Secret>"),
    "password in SQL": within("CREATE USER x IDENTIFIED BY '{}'", "ALTER ROLE x PASSWORD '{}'", "s3('u', 'k', '{}')"),
    "address with credentials": within(
        "postgresql://user:{}@db:5432/x", "https://{}@github.com/a/b", "redis://:{}@cache", "amqp://u:p@{}@host/v"
    ),
}
