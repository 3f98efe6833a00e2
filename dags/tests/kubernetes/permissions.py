"""The accounts of deploy/manifests/access.yaml: their tokens and permissions, which the loopback server enforces."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dags.tests.webserver import ROOT

ACCESS = ROOT / "deploy" / "manifests" / "access.yaml"
# Put in front of the path of Python in every pod.
IN_POD = Path(__file__).parent / "in_pod"


@dataclass(frozen=True)
class Account:
    """A service account: what it may do, and whether its pods get its token unless they say otherwise."""

    name: str
    granted: frozenset[tuple[str, str]]
    mounts_token: bool

    @property
    def token(self) -> str:
        """Return the token of the account."""
        return f"token-of-{self.name}"


def read_accounts(path: Path = ACCESS) -> dict[str, Account]:
    """Return the accounts of a manifest by name."""
    documents = list(yaml.safe_load_all(path.read_text()))
    roles = {one["metadata"]["name"]: frozenset(_granted(one["rules"])) for one in documents if one["kind"] == "Role"}
    bound = {
        subject["name"]: roles[one["roleRef"]["name"]]
        for one in documents
        if one["kind"] == "RoleBinding"
        for subject in one["subjects"]
    }
    return {
        one["metadata"]["name"]: Account(
            one["metadata"]["name"],
            bound.get(one["metadata"]["name"], frozenset()),
            one.get("automountServiceAccountToken", True),
        )
        for one in documents
        if one["kind"] == "ServiceAccount"
    }


def _granted(rules: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    for rule in rules:
        yield from ((verb, resource) for verb in rule["verbs"] for resource in rule["resources"])


def environment_of(account: Account | None, directory: Path, port: int) -> dict[str, str]:
    """Return the variables of a process in a pod, and write the account's token to the directory if it has one."""
    directory.mkdir(exist_ok=True)
    if account is not None:
        (directory / "token").write_text(account.token)
        (directory / "ca.crt").write_text("no certificate: the loopback server does not use TLS")
    return {
        "KUBERNETES_SERVICE_HOST": "127.0.0.1",
        "KUBERNETES_SERVICE_PORT": str(port),
        "SERVICE_ACCOUNT_DIRECTORY": str(directory),
        # As in the image, where it is the directory of the code.
        "PYTHONPATH": f"{IN_POD}:{ROOT}",
    }
