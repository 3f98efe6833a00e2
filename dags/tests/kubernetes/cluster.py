"""The cluster behind the loopback API server: objects, and pods that are processes of this machine.

The command of a container runs as a process group of its own, with the environment of its image, `envFrom` and `env`
only, and with the token of its account only if the pod mounts it. Volumes are not mounted, limits and security contexts
are validated but not enforced, probes do not run, finished Jobs are kept, and a Job has one pod, never retried.
"""

import base64
import datetime as dt
import re
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kubernetes_validate

from dags.local import services
from dags.tests.kubernetes.permissions import Account, environment_of

# Objects are validated by the schemas of this release.
VERSION = "1.34"
NAME = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?")
MAX_NAME_CHARACTERS = 63
POLL_SECONDS = 0.2
GRACE_SECONDS = 30
OUT_OF_MEMORY_CODE = 137
API_VERSIONS = {
    "jobs": "batch/v1",
    "pods": "v1",
    "events": "v1",
    "secrets": "v1",
    "configmaps": "v1",
}
KINDS = {
    "jobs": "Job",
    "pods": "Pod",
    "events": "Event",
    "secrets": "Secret",
    "configmaps": "ConfigMap",
}
Manifest = dict[str, Any]


class ApiError(Exception):
    """An error response with a code, a reason and a message."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class NotReadyError(Exception):
    """A container that cannot start yet, with the reason as Kubernetes names it."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class Image:
    """The environment and the working directory of an image."""

    environment: Mapping[str, str]
    directory: Path


@dataclass
class Running:
    """The state of a pod that the API does not show."""

    log: Path
    process: "subprocess.Popen[bytes] | None" = None
    out_of_memory: bool = False
    deleted: bool = False
    thread: threading.Thread | None = None


@dataclass
class Cluster:
    """One namespace with its objects and processes. Thread-safe."""

    lifeline: services.Lifeline
    logs: Path
    images: Mapping[str, Image]
    namespace: str = "dagster"
    accounts: Mapping[str, Account] = field(default_factory=dict)
    # Of the API server.
    port: int = 0
    objects: dict[str, dict[str, Manifest]] = field(default_factory=lambda: {plural: {} for plural in KINDS})
    refusals: list[str] = field(default_factory=list)
    # While set, new pods get no node.
    full: bool = False
    _running: dict[str, Running] = field(default_factory=dict)
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _closing: bool = False

    def find(self, plural: str, fields: Mapping[str, object], labels: Mapping[str, str]) -> list[Manifest]:
        """Return the objects of a kind with these fields (by path, such as `metadata.name`) and labels."""
        with self._changed:
            return [
                one
                for one in self.objects[plural].values()
                if all(_field(one, path) == value for path, value in fields.items())
                and labels.items() <= one["metadata"].get("labels", {}).items()
            ]

    def read(self, plural: str, name: str) -> Manifest:
        """Return an object. Raises ApiError when there is none."""
        with self._changed:
            if name not in self.objects[plural]:
                raise ApiError(404, "NotFound", f'{plural} "{name}" not found')
            return self.objects[plural][name]

    def create(self, plural: str, manifest: Manifest) -> Manifest:
        """Validate an object and add it; a Job gets its pod. Raises ApiError, which `refusals` keeps."""
        try:
            check(plural, manifest, self.namespace)
            with self._changed:
                made = self._add(plural, manifest)
                if plural == "jobs":
                    self._start_job(made)
                return made
        except ApiError as error:
            self.refusals.append(str(error))
            raise

    def delete(self, plural: str, name: str, propagation: str | None = None) -> Manifest:
        """Delete an object. A pod gets time to stop; pods of a Job stay unless `propagation` says otherwise."""
        with self._changed:
            gone = self.read(plural, name)
            if plural == "pods":
                self._stop(name)
                return gone
            del self.objects[plural][name]
            if plural == "jobs" and propagation in ("Background", "Foreground"):
                for pod in self.find("pods", {}, {"job-name": name}):
                    self._stop(pod["metadata"]["name"])
            return gone

    def log(self, pod_name: str, tail_lines: int | None = None) -> str:
        """Return the log of a pod so far."""
        self.read("pods", pod_name)
        lines = self._running[pod_name].log.read_text(errors="replace").splitlines(keepends=True)
        return "".join(lines if tail_lines is None else lines[-tail_lines:])

    def pods_of(self, job_name: str) -> list[Manifest]:
        """Return the pods of a Job."""
        return self.find("pods", {}, {"job-name": job_name})

    def kill_as_out_of_memory(self, pod_name: str) -> None:
        """Kill a pod as the kernel does when a container exceeds its memory limit."""
        with self._changed:
            running = self._running[pod_name]
            assert running.process is not None, f"pod {pod_name} is not running yet"
            running.out_of_memory = True
            services.kill_group(running.process.pid, signal.SIGKILL)

    def make_room(self) -> None:
        """Let pending and new pods get a node."""
        with self._changed:
            self.full = False
            self._changed.notify_all()

    def close(self) -> None:
        """Kill all processes and wait for them."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            for running in self._running.values():
                if running.process is not None:
                    services.kill_group(running.process.pid, signal.SIGKILL)
        for running in list(self._running.values()):
            if running.thread is not None:
                running.thread.join()

    def _add(self, plural: str, manifest: Manifest) -> Manifest:
        name = manifest["metadata"]["name"]
        if name in self.objects[plural]:
            raise ApiError(409, "AlreadyExists", f'{plural} "{name}" already exists')
        metadata = {
            "namespace": self.namespace,
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _now(),
            **manifest["metadata"],
        }
        made = {"apiVersion": API_VERSIONS[plural], "kind": KINDS[plural], **manifest, "metadata": metadata}
        self.objects[plural][name] = made
        return made

    def _start_job(self, job: Manifest) -> None:
        job_name, template = job["metadata"]["name"], job["spec"]["template"]
        name = f"{job_name[: MAX_NAME_CHARACTERS - 6]}-{uuid.uuid4().hex[:5]}"
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": job_name, "uid": job["metadata"]["uid"]}
        job["status"] = {"active": 1, "startTime": _now()}
        metadata = {
            "name": name,
            # As in Kubernetes, a name in the template's metadata is not used.
            "labels": {**template.get("metadata", {}).get("labels", {}), "job-name": job_name},
            "ownerReferences": [owner],
        }
        pod = self._add("pods", {"metadata": metadata, "spec": template["spec"], "status": {"phase": "Pending"}})
        self._wait_for(pod, "ContainerCreating", None)
        running = Running(self.logs / f"{name}.log")
        running.log.touch()
        running.thread = threading.Thread(target=self._run, args=(pod, running), name=name, daemon=True)
        self._running[name] = running
        running.thread.start()

    def _run(self, pod: Manifest, running: Running) -> None:
        """Run a pod, in a thread of its own."""
        code = self._started(pod, running)
        if code is None:
            return
        with self._changed:
            name = pod["metadata"]["name"]
            if running.deleted:
                self.objects["pods"].pop(name, None)
            reason = "OOMKilled" if running.out_of_memory else "Completed" if code == 0 else "Error"
            self._set_state(
                pod,
                "Failed" if code else "Succeeded",
                {"terminated": {"exitCode": code, "reason": reason, "finishedAt": _now()}},
            )
            self._end_job(pod, succeeded=code == 0)

    def _started(self, pod: Manifest, running: Running) -> int | None:
        """Start the process as soon as possible and wait; return its exit code, or None when it never ran."""
        while True:
            with self._changed:
                if self._closing:
                    return None
                if running.deleted:
                    self.objects["pods"].pop(pod["metadata"]["name"], None)
                    self._end_job(pod, succeeded=False)
                    return None
                try:
                    process = running.process = self._start_process(pod, running)
                except NotReadyError as error:
                    self._wait_for(pod, error.reason, str(error))
                    self._changed.wait(POLL_SECONDS)
                    continue
                self._set_state(pod, "Running", {"running": {"startedAt": _now()}})
            code = process.wait()
            return OUT_OF_MEMORY_CODE if running.out_of_memory else 128 - code if code < 0 else code

    def _start_process(self, pod: Manifest, running: Running) -> "subprocess.Popen[bytes]":
        if self.full:
            raise NotReadyError("Unschedulable", "0/1 nodes are available: 1 Insufficient memory.")
        (container,) = pod["spec"]["containers"]
        image = self.images.get(container["image"])
        if image is None:
            raise NotReadyError("ImagePullBackOff", f'Back-off pulling image "{container["image"]}"')
        account = self.accounts.get(pod["spec"].get("serviceAccountName", "default"))
        mounts = pod["spec"].get("automountServiceAccountToken", account is not None and account.mounts_token)
        directory = self.logs / f"{pod['metadata']['name']}-service-account"
        environment = {
            **image.environment,
            **environment_of(account if mounts else None, directory, self.port),
            "HOSTNAME": pod["metadata"]["name"],
            **dict(self._environment(pod, container)),
        }
        command = [*container.get("command", []), *container.get("args", [])]
        with running.log.open("wb") as output:
            return self.lifeline.spawn(
                ["command", str(image.directory), *command], output=output.fileno(), environment=environment
            )

    def _environment(self, pod: Manifest, container: Manifest) -> Iterator[tuple[str, str]]:
        """Yield the variables of a container; later ones override. Raises NotReadyError when a source is missing."""
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                yield from self._data("configmaps", source["configMapRef"]["name"]).items()
            else:
                yield from self._data("secrets", source["secretRef"]["name"]).items()
        for variable in container.get("env", []):
            match variable.get("valueFrom"):
                case None:
                    yield variable["name"], variable.get("value", "")
                case {"secretKeyRef": {"name": name, "key": key}}:
                    yield variable["name"], self._key("secrets", name, key)
                case {"configMapKeyRef": {"name": name, "key": key}}:
                    yield variable["name"], self._key("configmaps", name, key)
                case {"fieldRef": {"fieldPath": path}}:
                    yield variable["name"], str(_field(pod, path))
                case other:
                    raise NotReadyError("CreateContainerConfigError", f"unsupported source of a variable: {other}")

    def _key(self, plural: str, name: str, key: str) -> str:
        data = self._data(plural, name)
        if key not in data:
            raise NotReadyError("CreateContainerConfigError", f'couldn\'t find key {key} in {plural} "{name}"')
        return data[key]

    def _data(self, plural: str, name: str) -> Mapping[str, str]:
        found = self.objects[plural].get(name)
        if found is None:
            raise NotReadyError("CreateContainerConfigError", f'{plural} "{name}" not found')
        encoded = found.get("data", {}) if plural == "secrets" else {}
        plain = found.get("stringData", {}) if plural == "secrets" else found.get("data", {})
        return {**{key: base64.b64decode(value).decode() for key, value in encoded.items()}, **plain}

    def _stop(self, pod_name: str) -> None:
        running = self._running[pod_name]
        running.deleted = True
        self._changed.notify_all()
        if running.process is None or running.process.poll() is not None:
            self.objects["pods"].pop(pod_name, None)
            return
        process = running.process
        services.kill_group(process.pid, signal.SIGTERM)
        timer = threading.Timer(GRACE_SECONDS, services.kill_group, (process.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()

    def _wait_for(self, pod: Manifest, reason: str, message: str | None) -> None:
        """Set why the container is not running yet; an unusual reason is also recorded as an event."""
        waiting = {"reason": reason} if message is None else {"reason": reason, "message": message}
        if message is not None and _field(pod, "status.containerStatuses")[0]["state"].get("waiting") != waiting:
            self._add_event(pod, "FailedScheduling" if reason == "Unschedulable" else "Failed", message)
        self._set_state(pod, "Pending", {"waiting": waiting})

    def _set_state(self, pod: Manifest, phase: str, state: Manifest) -> None:
        """Replace the status, so that a status that was already returned does not change."""
        (container,) = pod["spec"]["containers"]
        status = {
            "name": container["name"],
            "image": container["image"],
            "imageID": container["image"],
            "ready": "running" in state,
            "restartCount": 0,
            "state": state,
        }
        pod["status"] = {
            "phase": phase,
            "startTime": pod["metadata"]["creationTimestamp"],
            "containerStatuses": [status],
        }

    def _end_job(self, pod: Manifest, *, succeeded: bool) -> None:
        job = self.objects["jobs"].get(pod["metadata"]["labels"]["job-name"])
        if job is None:
            return
        ended = {"succeeded": 1, "completionTime": _now()} if succeeded else {"failed": 1}
        condition = {"type": "Complete" if succeeded else "Failed", "status": "True", "lastTransitionTime": _now()}
        job["status"] = {"startTime": job["status"]["startTime"], **ended, "conditions": [condition]}

    def _add_event(self, pod: Manifest, reason: str, message: str) -> None:
        involved = {"kind": "Pod", "name": pod["metadata"]["name"], "namespace": self.namespace}
        event = {
            "metadata": {"name": f"{pod['metadata']['name']}.{uuid.uuid4().hex[:12]}"},
            "involvedObject": involved,
            "type": "Warning",
            "reason": reason,
            "message": message,
            "count": 1,
        }
        self._add("events", event)


def check(plural: str, manifest: Manifest, namespace: str) -> None:
    """Validate an object by the strict schema and by rules beyond it. Raises ApiError 422, or 400."""
    if (manifest.get("apiVersion"), manifest.get("kind")) != (API_VERSIONS[plural], KINDS[plural]):
        raise ApiError(400, "BadRequest", f"this address accepts {KINDS[plural]} of {API_VERSIONS[plural]}")
    try:
        kubernetes_validate.validate(manifest, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        where = ".".join(map(str, error.path))
        raise _invalid(f"{KINDS[plural]} is invalid: {where}: {error.message}") from error
    metadata = manifest.get("metadata", {})
    if metadata.get("namespace", namespace) != namespace:
        raise ApiError(400, "BadRequest", f"the namespace of the object is not {namespace}")
    name = metadata.get("name", "")
    if not NAME.fullmatch(name) or len(name) > MAX_NAME_CHARACTERS:
        raise _invalid(
            f"metadata.name: {name!r} is not a name: {MAX_NAME_CHARACTERS} lower-case letters, digits and hyphens"
        )
    _check_labels(metadata)
    if plural == "jobs":
        _check_job(manifest["spec"])


def _check_job(spec: Manifest) -> None:
    _check_labels(spec["template"].get("metadata", {}))
    pod = spec["template"]["spec"]
    if pod.get("restartPolicy") not in ("Never", "OnFailure"):
        raise _invalid("spec.template.spec.restartPolicy: a Job's pod has Never or OnFailure")
    if spec.get("backoffLimit") != 0:
        raise _invalid("spec.backoffLimit: this server retries no pod, so it must be 0")
    if len(pod["containers"]) != 1 or "initContainers" in pod:
        raise _invalid("spec.template.spec.containers: this server runs one container a pod")


def _check_labels(metadata: Manifest) -> None:
    for key, value in metadata.get("labels", {}).items():
        if len(value) > MAX_NAME_CHARACTERS or not LABEL_VALUE.fullmatch(value):
            raise _invalid(f"metadata.labels: {value!r}, of {key}, is not a label")


def _invalid(message: str) -> ApiError:
    return ApiError(422, "Invalid", message)


def _field(manifest: Manifest, path: str) -> Any:
    found: Any = manifest
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def _now() -> str:
    return dt.datetime.now(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
