"""The manifests in deploy/kubernetes against Kubernetes' schemas, each other, our settings and our metrics."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import jsonschema_rs
import pytest
import yaml

from config.settings import KNOWN_VARIABLES, OTHER_VARIABLES, Settings, known_keys, load
from scripts.health import REDIS_SECONDS
from scripts.lib.supervisor import STOP_MARGIN_SECONDS
from scripts.main import VERBS, cli
from tests.support.kustomize import DEPLOY, Object, config_maps, environment, normal, pod_of, render
from workers.dashboard.metrics_table import METRICS

ROOT = Path(__file__).parents[2]
OVERLAYS = ["try", "production"]
SETTINGS = {f"THEMES_{key.upper().replace('.', '__')}" for key in known_keys()} | set(KNOWN_VARIABLES) | OTHER_VARIABLES
#: Where secrets may be missing.
OPTIONAL = {("themes-redis", "ca.crt")}


@cache
def _objects(overlay: str) -> list[Object]:
    return render(DEPLOY / "kubernetes/overlays" / overlay)


def _one(overlay: str, kind: str, name: str) -> Object:
    (found,) = [one for one in _objects(overlay) if (one["kind"], one["metadata"]["name"]) == (kind, name)]
    return found


def _containers(overlay: str) -> Iterator[tuple[Object, Object]]:
    for one in _objects(overlay):
        for container in pod_of(one).get("containers", []):
            yield one, container


def _ours(overlay: str) -> Iterator[tuple[Object, Object]]:
    return ((one, container) for one, container in _containers(overlay) if container["name"] == "themes")


def _walk(value: Any) -> Iterator[Object]:
    if isinstance(value, dict):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(one)


def _config(overlay: str) -> dict[str, dict[str, str]]:
    return config_maps(_objects(overlay))


def _environment(overlay: str, container: Object) -> dict[str, str]:
    """The variables of a container; what a secret holds is made up."""
    return environment(container, _config(overlay), lambda name, _: "redis://x/1" if name == "themes-redis" else "x")


def _settings(env: dict[str, str]) -> Settings:
    return load(env={name: text for name, text in env.items() if name in SETTINGS})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_one_by_the_published_schemas(overlay: str) -> None:
    schemas = json.loads((ROOT / "tests/support/schemas/kubernetes.json").read_text())
    for one in _objects(overlay):
        kind = f"{one['apiVersion']}/{one['kind']}"
        validator = jsonschema_rs.validator_for(schemas | {"$ref": f"#/kinds/{kind.replace('/', '~1')}"})
        assert [flaw.message for flaw in validator.iter_errors(one)] == [], kind
        assert list(validator.iter_errors(one | {"spek": {}})), f"{kind}: a field that is not known is accepted"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_selects_pods_finds_some(overlay: str) -> None:
    pods = [one["spec"]["template"] for one in _objects(overlay) if pod_of(one)]
    for one in _objects(overlay):
        if pod_of(one):
            assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
    for one in _objects(overlay):
        if one["kind"] == "Service":
            labels = one["spec"]["selector"]
        elif one["kind"] in {"PodDisruptionBudget", "NetworkPolicy"}:
            labels = one["spec"]["podSelector" if one["kind"] == "NetworkPolicy" else "selector"]["matchLabels"]
        else:
            continue
        found = [pod["spec"] for pod in pods if labels.items() <= pod["metadata"]["labels"].items()]
        assert found, one["metadata"]["name"]
        for port in one["spec"].get("ports", []):
            ports = [each for pod in found for container in pod["containers"] for each in container["ports"]]
            assert {each["name"]: each["containerPort"] for each in ports}[port["targetPort"]] == port["port"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_without_rights(overlay: str) -> None:
    for one, container in _containers(overlay):
        pod, name = pod_of(one), one["metadata"]["name"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        # A Service's address would be a variable of our prefix that is no setting.
        assert pod["enableServiceLinks"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
        }  # fmt: skip
        assert container["resources"]["limits"]["memory"]
        claims = [claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])]
        volumes = {*claims, *(volume["name"] for volume in pod["volumes"])}
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes
        assert any(mount["mountPath"] == "/tmp" for mount in container["volumeMounts"])  # noqa: S108
        assert "readinessProbe" in container or "startupProbe" in container
    user = re.search(r"^USER (\d+):", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert user
    assert {pod_of(one)["securityContext"]["runAsUser"] for one, _ in _ours(overlay)} == {int(user[1])}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_of_ours_have_the_version_of_this_and_others_are_pinned(overlay: str) -> None:
    for one, container in _containers(overlay):
        name, _, tag = container["image"].rpartition("themes:")
        is_ours = one["metadata"]["name"] in {"worker", "consumer", "dashboard", "sandbox"}
        assert (
            (tag == version("smart-destination-themes"))
            if is_ours
            else re.search(r":[\d.]+-alpine@sha256:\w{64}$", name + tag)
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_settings_of_every_container_are_ours_and_can_be_loaded(overlay: str) -> None:
    roles = set()
    for one, container in _ours(overlay):
        env = _environment(overlay, container)
        values = " ".join(each.get("value", "") for each in container["env"])
        helpers = set(re.findall(r"\$\((\w+)\)", values))
        assert set(env) - helpers <= SETTINGS
        settings = _settings(env)
        volumes = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
        # The volume's own folder may be written by its group.
        assert any(str(settings.state_dir).startswith(f"{mount}/") for mount in volumes)
        (role,) = container["args"]
        assert role in VERBS
        roles.add(role)
        for probe in ("startupProbe", "livenessProbe"):
            # Redis is tried twice; the rest is for the start of the command.
            assert container[probe]["timeoutSeconds"] >= 2 * REDIS_SECONDS + 3
            _, verb, *rest = container[probe]["exec"]["command"]
            health = cli.get_command(click.Context(cli), verb)
            assert health is not None
            with health.make_context(verb, list(rest)) as context:
                assert context.params == {"role": role}
        assert one["metadata"]["name"] == role
    assert roles == {"worker", "consumer", "dashboard"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_worker_gets_longer_to_stop_than_it_takes(overlay: str) -> None:
    grace = _settings(_config(overlay)["themes"]).work.shutdown_grace_seconds
    worker = pod_of(_one(overlay, "Deployment", "worker"))
    assert worker["terminationGracePeriodSeconds"] >= grace + STOP_MARGIN_SECONDS + 5


def _secrets_of_the_guide() -> set[tuple[str, str]]:
    guide = (ROOT / "docs/guide/cluster.md").read_text().replace("\\\n", " ")
    made = re.findall(r"create secret generic (\S+)([^\n]*)", guide)
    return {(name, key) for name, rest in made for key in re.findall(r"--from-(?:literal|file)=([\w.-]+)=", rest)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_secret_that_is_named_is_made_by_a_command_of_the_guide_and_none_is_written(overlay: str) -> None:
    assert not [one for one in _objects(overlay) if one["kind"] == "Secret"]
    used: set[tuple[str, str]] = set()
    for part in _walk(_objects(overlay)):
        if "secretKeyRef" in part:
            used.add((part["secretKeyRef"]["name"], part["secretKeyRef"]["key"]))
        if "secretName" in part:
            used |= {(part["secretName"], item["key"]) for item in part["items"]}
        used |= {(one["name"], one["key"]) for one in part.get("secretTargetRef", [])}
    assert used - OPTIONAL <= _secrets_of_the_guide()
    names = {part["configMap"]["name"] for part in _walk(_objects(overlay)) if isinstance(part.get("configMap"), dict)}
    assert names <= set(_config(overlay))
    holders = [one["metadata"]["name"] for one, _ in _containers(overlay) if "themes-llm" in json.dumps(one)]
    assert holders == ["worker"], "the LLM's key is in the workers alone"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_policies_let_each_service_be_reached_and_nothing_else(overlay: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in _objects(overlay) if one["kind"] == "NetworkPolicy"}
    everybody = policies["themes"]
    assert everybody["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in everybody, "what is not named elsewhere is refused"
    services = {
        one["metadata"]["name"]: one["spec"]["ports"][0]["port"]
        for one in _objects(overlay)
        if one["kind"] == "Service"
    }
    ways_out = {
        port["port"]
        for name in ("themes", "worker", "worker-to-sandbox")
        for port in _ports(policies.get(name, {}), "egress")
    }
    assert ways_out == {53, 6379, 5432, 443, *services.values()} - {services["dashboard"]}
    assert [port["port"] for port in _ports(policies["dashboard"], "ingress")] == [services["dashboard"]]
    assert "169.254.0.0/16" in policies["worker"]["egress"][0]["to"][0]["ipBlock"]["except"]
    if overlay == "try":
        backing = {
            labels["app.kubernetes.io/name"] for labels in _labels(overlay) if "app.kubernetes.io/component" in labels
        }
        assert backing == set(services) - {"dashboard"}
        assert "egress" not in policies["backing"]


def _ports(policy: Object, direction: str) -> list[Object]:
    return [port for rule in policy.get(direction, []) for port in rule["ports"]]


def _labels(overlay: str) -> list[dict[str, str]]:
    return [one["spec"]["template"]["metadata"]["labels"] for one in _objects(overlay) if pod_of(one)]


def test_keda_scales_by_metrics_that_the_dashboard_has() -> None:
    scaled = _one("production", "ScaledObject", "worker")["spec"]
    worker = _one("production", "Deployment", scaled["scaleTargetRef"]["name"])
    assert "replicas" not in worker["spec"], "the number is KEDA's"
    modifiers = scaled["advanced"]["scalingModifiers"]
    names = {trigger["name"] for trigger in scaled["triggers"]}
    assert set(re.findall(r"[a-z]+", modifiers["formula"])) == names == {"chunks", "calls"}
    pool = _settings(_config("production")["themes"]).performance_optimization.llm_connection_pool_size
    assert re.findall(r"\d+", modifiers["formula"]) == [str(pool)]
    known = {metric.name for metric in METRICS}
    service = _one("production", "Service", "dashboard")
    for trigger in scaled["triggers"]:
        assert trigger["metadata"]["valueLocation"].partition("{")[0] in known
        url = urlsplit(trigger["metadata"]["url"])
        assert url.hostname == f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
        assert url.port == service["spec"]["ports"][0]["port"]
        assert _one("production", "TriggerAuthentication", trigger["authenticationRef"]["name"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_makes_the_same_of_it(overlay: str) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl")
    command = [kubectl, "kustomize", DEPLOY / "kubernetes/overlays" / overlay]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    theirs = {(one["kind"], normal(one["metadata"]["name"])): normal(one) for one in yaml.safe_load_all(made)}
    ours = {(one["kind"], one["metadata"]["name"]): normal(one) for one in _objects(overlay)}
    assert theirs == ours
