"""The manifests as `kubectl kustomize` builds them, and the pods that they lead to."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

KUBERNETES = Path(__file__).parents[2] / "deploy/kubernetes"

Object = dict[str, Any]


def build(folder: str) -> list[Object]:
    if shutil.which("kubectl") is None:
        pytest.skip("there is no command kubectl")
    built = subprocess.run(
        ["kubectl", "kustomize", KUBERNETES / folder], capture_output=True, text=True, timeout=60
    )
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def of(objects: list[Object], kind: str, name: str | None = None) -> list[Object]:
    return [found for found in objects if found["kind"] == kind and name in (None, found["metadata"]["name"])]


def ray(objects: list[Object]) -> Object:
    (cluster,) = of(objects, "RayCluster")
    return cluster


def pods(objects: list[Object]) -> Iterator[tuple[dict[str, str], Object]]:
    """Yield labels and specification of every pod, with the labels that KubeRay adds."""
    for deployment in of(objects, "Deployment"):
        template = deployment["spec"]["template"]
        yield template["metadata"]["labels"], template["spec"]
    cluster = ray(objects)
    head = cluster["spec"]["headGroupSpec"]
    for kind, group in [
        ("head", head),
        *(("worker", found) for found in cluster["spec"]["workerGroupSpecs"]),
    ]:
        added = {
            "ray.io/is-ray-node": "yes",
            "ray.io/cluster": cluster["metadata"]["name"],
            "ray.io/node-type": kind,
            "ray.io/group": group.get("groupName", "headgroup"),
            # The head's Service selects by it.
            "app.kubernetes.io/name": "kuberay",
        }
        labels = group["template"]["metadata"]["labels"]
        assert not added.keys() & labels.keys()
        yield added | labels, group["template"]["spec"]


def selected(objects: list[Object], labels: dict[str, str]) -> list[Object]:
    return [spec for found, spec in pods(objects) if labels.items() <= found.items()]


def ports(spec: Object) -> dict[str, int]:
    return {port["name"]: port["containerPort"] for port in spec["containers"][0]["ports"]}
