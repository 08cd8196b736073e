"""What kustomize makes of deploy/kubernetes, as far as these files use it. A test compares it with kubectl's."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[2] / "deploy"
Object = dict[str, Any]
#: By which field the members of a list are told apart when a patch is laid over it; other lists are replaced.
_MERGED_BY = {"containers": "name", "env": "name", "volumes": "name", "volumeMounts": "mountPath"}


def render(folder: Path, objects: list[Object] | None = None) -> list[Object]:
    """The objects of a kustomization; a component works on `objects`."""
    file = yaml.safe_load((folder / "kustomization.yaml").read_text())
    made = list(objects or [])
    for name in file.get("resources", []):
        place = folder / name
        made += render(place.resolve()) if place.is_dir() else yaml.safe_load_all(place.read_text())
    for generator in file.get("configMapGenerator", []):
        _generate(made, generator, folder)
    for name in file.get("components", []):
        made = render((folder / name).resolve(), made)
    for patch in file.get("patches", []):
        made = [_patched(one, patch, folder) if _is_target(one, patch["target"]) else one for one in made]
    for one in made:
        if "namespace" in file:
            one["metadata"]["namespace"] = file["namespace"]
        for image in file.get("images", []):
            _set_image(one, image)
    return made


def _generate(made: list[Object], generator: Object, folder: Path) -> None:
    lines = [line for name in generator.get("envs", []) for line in (folder / name).read_text().splitlines()]
    lines += generator.get("literals", [])
    data = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    data |= {name: (folder / name).read_text() for name in generator.get("files", [])}
    if generator.get("behavior") == "merge":
        (known,) = [one for one in made if (one["kind"], one["metadata"]["name"]) == ("ConfigMap", generator["name"])]
        known["data"] |= data
    else:
        made.append({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": generator["name"]}, "data": data})


def _is_target(one: Object, target: dict[str, str]) -> bool:
    labels = one["metadata"].get("labels", {})
    wanted = dict(pair.split("=") for pair in target.get("labelSelector", "").split(",") if pair)
    is_named = target.get("name", one["metadata"]["name"]) == one["metadata"]["name"]
    return one["kind"] == target["kind"] and is_named and wanted.items() <= labels.items()


def _patched(one: Object, patch: Object, folder: Path) -> Object:
    if "path" in patch:
        overlay = yaml.safe_load((folder / patch["path"]).read_text())
        del overlay["metadata"]["name"]
        return _merged(one, overlay)
    for step in yaml.safe_load(patch["patch"]):
        assert step["op"] == "remove"
        *parents, last = step["path"].strip("/").split("/")
        place = one
        for name in parents:
            place = place[name]
        del place[last]
    return one


def _merged(base: Any, patch: Any, field: str = "") -> Any:
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {name: _merged(base[name], one, name) if name in base else one for name, one in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and (key := _MERGED_BY.get(field)):
        found = {one[key]: one for one in base}
        return list((found | {one[key]: _merged(found.get(one[key], {}), one) for one in patch}).values())
    return patch


def _set_image(one: Object, image: dict[str, str]) -> None:
    for container in pod_of(one).get("containers", []):
        name, _, tag = container["image"].partition(":")
        if name == image["name"]:
            container["image"] = f"{image.get('newName', name)}:{image.get('newTag', tag)}"


def pod_of(one: Object) -> Object:
    """The spec of the pods that an object makes; empty where it makes none."""
    found: Object = one.get("spec", {}).get("template", {}).get("spec", {})
    return found


def config_maps(objects: list[Object]) -> dict[str, dict[str, str]]:
    """What the ConfigMaps hold, by name."""
    return {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}


def environment(
    container: Object, config: dict[str, dict[str, str]], secret: Callable[[str, str], str]
) -> dict[str, str]:
    """The variables of a container; `secret` gives the value of a secret's key."""
    env: dict[str, str] = {}
    for source in container.get("envFrom", []):
        env |= config[source["configMapRef"]["name"]]
    for one in container.get("env", []):
        ((kind, place),) = one.get("valueFrom", {"value": one.get("value")}).items()
        if kind == "value":
            env[one["name"]] = re.sub(r"\$\((\w+)\)", lambda match: env[match[1]], place)
        elif kind == "secretKeyRef":
            env[one["name"]] = secret(place["name"], place["key"])
        else:
            env[one["name"]] = config[place["name"]][place["key"]]
    return env


def normal(value: Any) -> Any:
    """The same whatever the order in lists of named things, and without the hash in the names of ConfigMaps."""
    if isinstance(value, dict):
        return {key: normal(one) for key, one in value.items() if one != {}}
    if isinstance(value, list):
        return sorted((normal(one) for one in value), key=lambda one: json.dumps(one, sort_keys=True))
    if isinstance(value, str):
        return re.sub(r"^(themes|llm|redis)-[a-z0-9]{10}$", r"\1", value)
    return value
