"""Loaded by Python in every pod of the loopback cluster: its service account is in a directory of the pod.

A real pod has it at a fixed path, which the processes of one machine cannot share, and calls the API by TLS.
"""

import importlib.machinery
import os
import sys
from types import ModuleType

MODULE = "kubernetes.config.incluster_config"
DIRECTORY_VARIABLE = "SERVICE_ACCOUNT_DIRECTORY"


class _Finder:
    """A finder that changes the paths of one module when it is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """Return the module as it is, with a loader that changes the paths."""
        del target
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)  # type: ignore[arg-type] # as Python passes it
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            directory = os.environ.get(DIRECTORY_VARIABLE, "/nonexistent")
            module.SERVICE_TOKEN_FILENAME = f"{directory}/token"  # type: ignore[attr-defined]
            module.SERVICE_CERT_FILENAME = f"{directory}/ca.crt"  # type: ignore[attr-defined]
            set_config = module.InClusterConfigLoader._set_config

            def without_tls(loader: object, configuration: object) -> None:
                loader.host = loader.host.replace("https://", "http://")  # type: ignore[attr-defined]
                set_config(loader, configuration)

            module.InClusterConfigLoader._set_config = without_tls

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())  # type: ignore[arg-type] # a finder needs only find_spec
