"""Set-up: how uv gets pip's configuration, and pip in its place when uv fails."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import environment

ROOT = Path(__file__).resolve().parents[3]


def test_the_lock_pins_uv_with_hashes() -> None:
    requirement = environment.locked_requirement((ROOT / "requirements.lock").read_text(), "uv")
    assert requirement is not None
    first, *others = requirement.splitlines()
    assert first.startswith("uv==")
    assert others
    assert all(line.startswith("    --hash=sha256:") for line in others)


def test_a_package_whose_name_begins_alike_is_not_taken_for_uv() -> None:
    lock = "uvicorn==1 \\\n    --hash=sha256:00\nuv==2 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\nuvloop==3\n"
    assert environment.locked_requirement(lock, "uv") == "uv==2 \\\n    --hash=sha256:01 \\\n    --hash=sha256:02\n"
    assert environment.locked_requirement(lock, "absent") is None


def test_options_in_the_environment_override_those_of_install_which_override_global_ones() -> None:
    listed = (
        ":env:.cert='/of/the/environment'\n"
        "global.cert='/global'\n"
        "global.index-url='https://global/simple'\n"
        "global.no-binary='it\\'s'\n"
        'install.index-url="https://install/simple"\n'
        "list.format='json'\n"
    )
    assert environment.pip_options(listed) == {
        "cert": "/of/the/environment",
        "index-url": "https://install/simple",
        "no-binary": "it's",
    }


def test_uv_uses_the_indexes_certificates_and_proxy_of_pip() -> None:
    options = {
        "index-url": "https://user:secret@index.example/simple",
        "extra-index-url": "\nhttps://one.example/simple\nfile:///two/simple",
        "find-links": "/wheels /more-wheels",
        "no-index": "true",
        "cert": "/certificates.pem",
        "client-cert": "/client.pem",
        "proxy": "http://proxy.example:3128",
        "trusted-host": "one.example two.example:8080",
        "timeout": "60",
    }
    variables = environment.uv_variables(options, {"SSL_CERT_FILE": "/other.pem", "HOME": "/home/me"})
    assert variables == {
        "HOME": "/home/me",
        "UV_DEFAULT_INDEX": "https://user:secret@index.example/simple",
        "UV_INDEX": "https://one.example/simple file:///two/simple",
        "UV_FIND_LINKS": "/wheels,/more-wheels",
        "UV_NO_INDEX": "1",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_INSECURE_HOST": "one.example two.example:8080",
        "UV_HTTP_TIMEOUT": "60",
        "UV_SYSTEM_CERTS": "1",
        "SSL_CERT_FILE": "/certificates.pem",
        "SSL_CLIENT_CERT": "/client.pem",
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://proxy.example:3128"),
    }


def test_variables_of_uv_that_are_set_already_stay() -> None:
    variables = environment.uv_variables({"index-url": "https://pip/simple"}, {"UV_DEFAULT_INDEX": "https://uv/simple"})
    assert variables["UV_DEFAULT_INDEX"] == "https://uv/simple"


def make_wheel(directory: Path, name: str, script: str | None = None) -> str:
    """Write a wheel of one module, and perhaps of a script of the same name; return its line of a lock."""
    information = f"{name}-1.0.dist-info"
    files = {
        f"{name}.py": "",
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n",
        f"{information}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script is not None:
        files[f"{name}-1.0.data/scripts/{name}"] = script
    files[f"{information}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{information}/RECORD"])
    wheel = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            entry = zipfile.ZipInfo(path)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, text)
    return f"{name}==1.0 \\\n    --hash=sha256:{hashlib.sha256(wheel.read_bytes()).hexdigest()}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """The files that set-up reads, without a lock."""
    project = tmp_path / "project"
    (project / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "environment.py", project / "tools")
    shutil.copy(ROOT / "pyproject.toml", project)
    return project


def set_up(project: Path, wheels: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/environment.py"],
        cwd=project,
        env={
            "PATH": "/usr/bin:/bin",
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(wheels),
            "PIP_CONFIG_FILE": "/dev/null",
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_pip_installs_the_lock_when_uv_fails(project: Path, tmp_path: Path) -> None:
    uv = f"#!/bin/sh\nenv >{tmp_path}/environment\necho the index does not answer >&2\nexit 2\n"
    (project / "requirements.lock").write_text(make_wheel(tmp_path, "uv", uv) + make_wheel(tmp_path, "other"))
    result = set_up(project, tmp_path)
    assert result.returncode == 0, result.stderr
    assert "the index does not answer" in result.stderr
    assert "uv failed (it says why above), so pip installs the packages" in result.stdout
    assert list((project / ".venv" / "lib").glob("*/site-packages/other.py"))
    assert f"UV_FIND_LINKS={tmp_path}\n" in (tmp_path / "environment").read_text()


def test_pip_installs_the_lock_when_uv_is_not_available(project: Path, tmp_path: Path) -> None:
    locked = make_wheel(tmp_path, "other")
    (project / "requirements.lock").write_text(f"{locked}uv==1.0 ; python_version < '3' \\\n    --hash=sha256:00\n")
    result = set_up(project, tmp_path)
    assert result.returncode == 0, result.stderr
    assert list((project / ".venv" / "lib").glob("*/site-packages/other.py"))
