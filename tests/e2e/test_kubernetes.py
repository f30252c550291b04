"""The manifests build, are valid, and fit together: with each other, with the command line, and with KubeRay."""

from __future__ import annotations

import importlib.metadata
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from manifests import KUBERNETES, Object, build, of, pods, ports, ray, selected

from lowdimfa.services.cli.app import app
from lowdimfa.services.spec.addresses import is_address
from lowdimfa.version import VERSION
from tools import prometheus_rule

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BUILDS = ("base", "overlays/gpu", "overlays/mutual-tls", "overlays/s3")
BY_HAND = {"coordinator-tls", "coordinator-tokens", "storage-credentials"}
"""Secrets that the README has people make."""


@pytest.fixture(scope="module", params=BUILDS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return build(request.param)


def test_every_object_is_in_the_namespace_and_none_is_twice(objects: list[Object]) -> None:
    (namespace,) = of(objects, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    names = [(found["kind"], found["metadata"]["name"]) for found in objects]
    assert len(set(names)) == len(names)
    for found in objects:
        if found is not namespace:
            assert found["metadata"]["namespace"] == namespace["metadata"]["name"], found["metadata"]


def test_the_kinds_of_kubernetes_itself_are_valid(objects: list[Object]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    checked = 0
    for found in objects:
        group = found["apiVersion"].rpartition("/")[0]
        if "." not in group or group.endswith(".k8s.io"):
            validator.validate(found, "1.30", strict=True)
            checked += 1
    assert checked >= 15
    with pytest.raises(validator.ValidationError):
        validator.validate(
            of(objects, "Service")[0] | {"spec": {"ports": [{"prot": 1}]}}, "1.30", strict=True
        )


def test_every_pod_is_confined(objects: list[Object]) -> None:
    for _, spec in pods(objects):
        assert spec["automountServiceAccountToken"] is False
        assert of(objects, "ServiceAccount", spec["serviceAccountName"])
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"] + spec.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
            assert container["resources"]["limits"].keys() >= {"cpu", "memory"}
            assert re.fullmatch(rf"lowdimfa(-cuda)?:{re.escape(VERSION)}", container["image"])


MINE = (KUBERNETES / "README.md").read_text("utf-8").split("```yaml\n")[1].split("```")[0]


@pytest.mark.parametrize("base", sorted(set(re.findall(r"\.\./(base|overlays/\w+)", MINE))))
def test_every_image_of_an_overlay_of_ones_own_is_in_its_registry(base: str, tmp_path: Path) -> None:
    overlay = yaml.safe_load(MINE)
    overlay["resources"] = [f"../{base}"]
    if base == "overlays/s3":  # as the README says
        overlay["patches"] = [
            patch for patch in overlay["patches"] if patch["target"]["kind"] != "PersistentVolumeClaim"
        ]
    mine = shutil.copytree(KUBERNETES.parent, tmp_path / "deploy") / "kubernetes" / "mine"
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(yaml.safe_dump(overlay))
    images = {container["image"] for _, spec in pods(build(str(mine))) for container in spec["containers"]}
    assert images and all(image.startswith("registry.example.org/lowdimfa") for image in images)


def test_volumes_claims_and_secrets_are_there(objects: list[Object]) -> None:
    # KubeRay makes a Secret with the cluster's name for its token.
    shared = of(objects, "PersistentVolumeClaim", "storage")
    used, maps = set(), set()
    for _, spec in pods(objects):
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        mounted = {mount["name"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted == volumes.keys()
        for volume in volumes.values():
            if "persistentVolumeClaim" in volume:
                assert of(objects, "PersistentVolumeClaim", volume["persistentVolumeClaim"]["claimName"])
            if "secret" in volume:
                used.add(volume["secret"]["secretName"])
        sources = spec["containers"][0].get("envFrom", [])
        used |= {source["secretRef"]["name"] for source in sources if "secretRef" in source}
        maps |= {source["configMapRef"]["name"] for source in sources if "configMapRef" in source}
        assert bool(sources) is not bool(shared)  # all pods have the one or the other
    apart = {"storage-credentials"} if shared else set()
    assert used == BY_HAND - apart | {ray(objects)["metadata"]["name"]}
    assert all(of(objects, "ConfigMap", name) for name in maps)
    readme = (KUBERNETES / "README.md").read_text("utf-8")
    assert all(f"create secret generic {name}" in readme for name in BY_HAND)
    assert all(claim["spec"]["accessModes"] == ["ReadWriteMany"] for claim in shared)


def test_probes_and_services_name_ports_that_are_there(objects: list[Object]) -> None:
    for _, spec in pods(objects):
        (container,) = spec["containers"]
        for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
            (asked,) = (container[kind][how] for how in ("tcpSocket", "httpGet") if how in container[kind])
            assert asked["port"] in ports(spec)
    for service in of(objects, "Service"):
        (spec,) = selected(objects, service["spec"]["selector"])
        for port in service["spec"]["ports"]:
            assert ports(spec)[port["targetPort"]] == port["port"]


def test_selectors_find_what_they_are_for(objects: list[Object]) -> None:
    (deployment,) = of(objects, "Deployment")
    template = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"].items() <= template.items()
    assert (deployment["spec"]["replicas"], deployment["spec"]["strategy"]) == (1, {"type": "Recreate"})
    for budget in of(objects, "PodDisruptionBudget"):
        assert len(selected(objects, budget["spec"]["selector"]["matchLabels"])) == 1
    (workers,) = of(objects, "PodDisruptionBudget", "ray-workers")
    replicas = [group["replicas"] for group in ray(objects)["spec"]["workerGroupSpecs"]]
    assert workers["spec"]["minAvailable"] == sum(replicas)
    for monitor in of(objects, "ServiceMonitor"):
        (service,) = of(objects, "Service", "coordinator")
        assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
        names = {port["name"] for port in service["spec"]["ports"]}
        assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= names


def test_the_network_is_closed_but_for_what_is_needed(objects: list[Object]) -> None:
    policies = {policy["metadata"]["name"]: policy["spec"] for policy in of(objects, "NetworkPolicy")}
    assert policies["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    for spec in policies.values():
        assert selected(objects, spec["podSelector"].get("matchLabels", {}))
        for peer in (
            peer
            for rules, side in (("ingress", "from"), ("egress", "to"))
            for rule in spec.get(rules, [])
            for peer in rule.get(side, [])
            if "namespaceSelector" not in peer
        ):
            assert selected(objects, peer["podSelector"]["matchLabels"])
    (coordinator,) = selected(objects, {"app.kubernetes.io/name": "coordinator"})
    opened = [port["port"] for rule in policies["coordinator"]["ingress"] for port in rule["ports"]]
    assert sorted(opened) == sorted(ports(coordinator).values())
    (head,) = selected(objects, {"ray.io/node-type": "head"})
    client = [{"protocol": "TCP", "port": ports(head)["client"]}]
    assert policies["coordinator"]["egress"][0]["ports"] == client
    assert policies["ray-client"]["ingress"][0]["ports"] == client
    # What Prometheus may reach of the Ray pods are the ports that their processes choose among, not Ray's own.
    (metrics,) = policies["job-metrics"]["ingress"][0]["ports"]
    for spec in selected(objects, {"ray.io/is-ray-node": "yes"}):
        (setting,) = spec["securityContext"]["sysctls"]
        assert setting["value"] == f"{metrics['port']} {metrics['endPort']}"
        assert all(not metrics["port"] <= port <= metrics["endPort"] for port in ports(spec).values())


def test_the_coordinators_command_is_one_that_serve_takes(
    objects: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    (coordinator,) = selected(objects, {"app.kubernetes.io/name": "coordinator"})
    (container,) = coordinator["containers"]
    program, name = container["command"]
    assert (program, name) == ("lowdimfa", "serve")
    for entry in container["env"]:
        monkeypatch.setenv(entry["name"], entry["value"])
    for source in container.get("envFrom", []):
        for found in of(objects, "ConfigMap", source.get("configMapRef", {}).get("name", "")):
            for name, value in found["data"].items():
                monkeypatch.setenv(name, value)
    command: Any = typer.main.get_command(app)
    given = command.get_command(None, "serve").make_context("serve", list(container["args"])).params
    cluster, head = ray(objects), selected(objects, {"ray.io/node-type": "head"})[0]
    assert given["ray_address"] == f"ray://{cluster['metadata']['name']}-head-svc:{ports(head)['client']}"
    expected = {"grpc": given["port"], "http": given["http_port"], "page": given["page_port"]}
    assert expected == ports(coordinator) and given["page"] is True
    assert given["insecure"] is False
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    files = [given["tls_cert"], given["tls_key"], given["tokens"], *filter(None, [given["client_ca"]])]
    files.append(
        Path(next(entry for entry in container["env"] if entry["name"] == "RAY_AUTH_TOKEN_PATH")["value"])
    )
    assert {str(path.parent) for path in files} <= mounts
    assert str(given["state"].parent) in mounts
    on_nodes = {mount["mountPath"] for mount in head["containers"][0]["volumeMounts"]}
    assert is_address(given["storage"]) or given["storage"] in mounts & on_nodes


def test_the_ray_cluster_is_one_that_kuberay_takes(objects: list[Object]) -> None:
    spec = ray(objects)["spec"]
    pinned = re.search(r"^ray==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE)
    assert pinned
    assert spec["rayVersion"] == pinned[1] == importlib.metadata.version("ray")
    assert spec["authOptions"] == {"mode": "token"}
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        # Without them KubeRay adds probes of Ray's dashboard, which the image doesn't have.
        (container,) = group["template"]["spec"]["containers"]
        assert container.keys() >= {"livenessProbe", "readinessProbe"}
        assert "command" not in container
    for group in spec["workerGroupSpecs"]:
        assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_prometheus_finds_jobs_and_has_the_rules(objects: list[Object]) -> None:
    (found,) = of(objects, "ScrapeConfig")
    (service,) = of(objects, "Service", "coordinator")
    (discovery,) = found["spec"]["httpSDConfigs"]
    port = next(port["port"] for port in service["spec"]["ports"] if port["name"] == "http")
    place = service["metadata"]["namespace"]
    assert discovery["url"] == f"http://coordinator.{place}.svc:{port}/targets"
    assert found["spec"]["honorLabels"] is True
    (rule,) = of(objects, "PrometheusRule")
    (monitor,) = of(objects, "ServiceMonitor")
    (relabeling,) = monitor["spec"]["endpoints"][0]["relabelings"]
    assert relabeling["targetLabel"] == "job"
    assert f'up{{job="{relabeling["replacement"]}"}}' in str(rule["spec"]["groups"])
    assert prometheus_rule.OBJECT.read_text("utf-8") == prometheus_rule.render()


def test_grafana_gets_every_dashboard(objects: list[Object]) -> None:
    maps = [
        found
        for found in of(objects, "ConfigMap")
        if found["metadata"].get("labels", {}).get("grafana_dashboard")
    ]
    sent = {name: text for found in maps for name, text in found["data"].items()}
    assert sent == {
        path.name: path.read_text("utf-8") for path in (ROOT / "deploy/grafana/dashboards").glob("*.json")
    }
    assert len(sent) >= 2


def test_the_overlay_with_gpus_gives_each_worker_one() -> None:
    objects = build("overlays/gpu")
    (worker,) = selected(objects, {"ray.io/node-type": "worker"})
    (container,) = worker["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["image"].startswith("lowdimfa-cuda:")
    (head,) = selected(objects, {"ray.io/node-type": "head"})
    assert head["containers"][0]["image"].startswith("lowdimfa:")
