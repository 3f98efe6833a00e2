"""The Kubernetes API of a test cluster over HTTP on loopback, as far as dagster-k8s uses it.

What requests do is in `cluster`.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

import yaml

from dags.local import ports
from dags.tests.kubernetes.cluster import API_VERSIONS, KINDS, VERSION, ApiError, Cluster

# Of an administrator, who may do everything.
TOKEN = "token-of-an-administrator"  # noqa: S105 - of the loopback server
ADDRESS = re.compile(
    r"/(?:api/(?P<core>v1)|apis/(?P<group>batch/v1))/namespaces/(?P<namespace>[^/]+)/(?P<plural>[a-z]+)"
    r"(?:/(?P<name>[^/]+)(?:/(?P<part>status|log))?)?"
)
VERBS = {"GET": "get", "POST": "create", "DELETE": "delete"}


@dataclass
class KubernetesServer:
    """A server that responds until it is stopped."""

    cluster: Cluster
    port: int
    # Verb and resource of each request, as a Role names them.
    requests: set[tuple[str, str]] = field(default_factory=set)
    _http: ThreadingHTTPServer | None = None

    def start(self) -> None:
        """Listen on the port."""
        handler = type("Handler", (_Handler,), {"server_state": self})
        self._http = _Listener((ports.LOOPBACK, self.port), handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def stop(self) -> None:
        """Refuse connections. Pods keep running, as on a cluster."""
        if self._http is not None:
            self._http.shutdown()
            self._http.server_close()
            self._http = None

    def write_kubeconfig(self, path: Path) -> Path:
        """Write the configuration of a client of this server; return its path."""
        address = f"http://{ports.LOOPBACK}:{self.port}"
        configuration = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "tests",
            "clusters": [{"name": "tests", "cluster": {"server": address}}],
            "users": [{"name": "tests", "user": {"token": TOKEN}}],
            "contexts": [
                {
                    "name": "tests",
                    "context": {"cluster": "tests", "user": "tests", "namespace": self.cluster.namespace},
                }
            ],
        }
        path.write_text(yaml.safe_dump(configuration))
        return path


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class _Handler(BaseHTTPRequestHandler):
    """Responses that close their connection, so that no client keeps one while the server is stopped."""

    server_state: ClassVar[KubernetesServer]

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the name in the standard library
        """Log nothing."""

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            code, answer = 200, self._do(json.loads(body) if body else {})
        except ApiError as error:
            status = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "message": str(error)}
            code, answer = error.code, status | {"reason": error.reason, "code": error.code}
        is_text = isinstance(answer, str)
        sent = (answer if is_text else json.dumps(answer)).encode()
        # The client may have disconnected.
        with contextlib.suppress(OSError):
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent)

    def _do(self, body: dict[str, Any]) -> Any:
        address = urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        # The client of a pod writes `bearer`.
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        accounts = self.server_state.cluster.accounts.values()
        account = next((one for one in accounts if one.token == token), None)
        if scheme.lower() != "bearer" or (account is None and token != TOKEN):
            raise ApiError(401, "Unauthorized", "Unauthorized")
        if address.path == "/version":
            major, minor = VERSION.split(".")
            return {"major": major, "minor": minor, "gitVersion": f"v{VERSION}.0"}
        found = ADDRESS.fullmatch(address.path)
        if found is None or API_VERSIONS.get(found["plural"]) != (found["core"] or found["group"]):
            raise ApiError(404, "NotFound", "the server could not find the requested resource")
        plural, name, part = found["plural"], found["name"], found["part"]
        verb = VERBS[self.command] if name or self.command != "GET" else "list"
        wanted = (verb, f"{plural}/{part}" if part else plural)
        self.server_state.requests.add(wanted)
        if account is not None and wanted not in account.granted:
            message = f"account {account.name} may not {wanted[0]} {wanted[1]}"
            self.server_state.cluster.refusals.append(message)
            raise ApiError(403, "Forbidden", message)
        if found["namespace"] != self.server_state.cluster.namespace:
            raise ApiError(403, "Forbidden", f"access to the namespace {found['namespace']} is forbidden")
        return self._on(verb, plural, name, part, query, body)

    def _on(
        self, verb: str, plural: str, name: str, part: str | None, query: dict[str, str], body: dict[str, Any]
    ) -> Any:
        cluster = self.server_state.cluster
        match verb, part:
            case "create", None if not name:
                return cluster.create(plural, body)
            case "list", None if "watch" not in query:
                items = cluster.find(
                    plural, _selector(query.get("fieldSelector")), _selector(query.get("labelSelector"))
                )
                return {
                    "apiVersion": API_VERSIONS[plural],
                    "kind": f"{KINDS[plural]}List",
                    "metadata": {},
                    "items": items,
                }
            case "get", "log" if plural == "pods":
                lines = query.get("tailLines")
                return cluster.log(name, None if lines is None else int(lines))
            case "get", None | "status":
                return cluster.read(plural, name)
            case "delete", None if name:
                return cluster.delete(plural, name, query.get("propagationPolicy") or body.get("propagationPolicy"))
        raise ApiError(405, "MethodNotAllowed", f"this server does not support {verb} {plural} at {self.path}")


def _selector(text: str | None) -> dict[str, str]:
    """Return the pairs of a selector such as `job-name=a,part=b`. Raises ApiError for other operators."""
    pairs = [one.partition("=") for one in text.split(",")] if text else []
    if any(not equals or name.endswith("!") or value.startswith("=") for name, equals, value in pairs):
        raise ApiError(400, "BadRequest", f"this server supports only name=value, not the selector {text}")
    return {name: value for name, _, value in pairs}


@contextlib.contextmanager
def serving(cluster: Cluster) -> Iterator[KubernetesServer]:
    """Yield a server for a cluster; stop it and all processes of the cluster at the end."""
    cluster.port = ports.free_port()
    server = KubernetesServer(cluster, cluster.port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        cluster.close()
