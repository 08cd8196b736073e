"""docs/reference/licences.md and the bill of materials: what the lock files have, with its licence."""

from docs._generate import licences


def test_the_page_is_of_todays_lock_files() -> None:
    assert licences.PAGE.read_text("utf-8") == licences.page(), "python docs/_generate/licences.py"
    for lock in licences.LOCKS:
        lines = (licences.ROOT / lock).read_text("utf-8").splitlines()
        pins = [line.split()[0] for line in lines if "==" in line and not line.startswith((" ", "#"))]
        assert pins == [f"{name}=={version}" for name, version, _ in licences.locked(lock)]


def test_every_licence_is_known_and_none_asks_to_publish_our_source() -> None:
    said = {name: licences.licence(name) for lock in licences.LOCKS for name, *_ in licences.locked(lock)}
    assert not {name: one for name, one in said.items() if licences.UNKNOWN in one or "GPL" in one}


def test_what_is_said_of_packages_of_other_systems_holds_where_they_are_installed() -> None:
    here = {name for name in licences.ELSEWHERE if licences.installed(name)}
    assert {name: licences.licence(name) for name in here} == {name: licences.ELSEWHERE[name] for name in here}


def test_the_bill_of_materials_has_every_locked_package_and_who_needs_it() -> None:
    bill = licences.sbom()
    purls = [f"pkg:pypi/{name}@{version}" for name, version, _ in licences.locked("requirements.lock")]
    assert [one["purl"] for one in bill["components"]] == purls
    own = bill["metadata"]["component"]["purl"]
    needs = {one["ref"]: one["dependsOn"] for one in bill["dependencies"]}
    assert set(needs) == {own, *purls}
    assert bill == licences.sbom()
    # Everything that is installed here is there for a reason: somebody needs it.
    reached, new = {own}, {own}
    while new:
        new = {one for ref in new for one in needs[ref]} - reached
        reached |= new
    missing = {one for one in purls if one not in reached and licences.installed(one[9:].partition("@")[0])}
    assert not missing
