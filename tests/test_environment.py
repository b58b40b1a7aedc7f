"""One list of dependencies: pyproject.toml. The conda file and the lock say the same, and name no machine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PIN = re.compile(r"^(?P<name>[A-Za-z0-9_.-]+)(?:\[[a-z,]+\])?==(?P<version>\S+)")


OWN_LOCK = {"spark": (ROOT / "requirements-spark.lock").read_text(encoding="utf-8")}  # too large for everybody


def declared_pins() -> list[str]:
    """Return the dependencies of pyproject.toml, dev group and extras included but for those with an own lock."""
    content = tomllib.loads(PYPROJECT)
    declared = content["project"]["optional-dependencies"]
    extras = [pin for name, extra in declared.items() if name not in OWN_LOCK for pin in extra]
    return [*content["project"]["dependencies"], *extras, *content["dependency-groups"]["dev"]]


def find_differences(pins: list[str], environment: str) -> set[str]:
    """Return the pins that stand in only one of the two."""
    entries = yaml.safe_load(environment)["dependencies"]
    pip = next(entry["pip"] for entry in entries if isinstance(entry, dict))
    return set(pins) ^ {pin for pin in pip if pin != "-e ."}


def find_unexplained(pins: list[str], pyproject: str) -> list[str]:
    """Return the dependencies whose line carries no reason."""
    return [pin for pin in pins if not re.search(rf'^ *"{re.escape(pin)}", +# \S+', pyproject, re.MULTILINE)]


def split_lock(lock: str) -> dict[str, tuple[str, str]]:
    """Return ``{name: (version, text of the entry)}``."""
    found = {}
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        pin = PIN.match(entry)
        if pin:
            found[canonicalize_name(pin["name"])] = (pin["version"], entry)
    return found


def find_lock_faults(lock: str) -> list[str]:
    """Return what would make the lock install something else elsewhere: no hash, an index, a link, a path, no pin."""
    faults = []
    for entry in re.split(r"\n(?=\S)", lock.strip()):
        first = entry.splitlines()[0]
        if first.startswith("#"):
            continue
        if not PIN.match(first):
            faults.append(f"no pinned package: {first}")
        elif "--hash=sha256:" not in entry:
            faults.append(f"no hash: {first}")
    words = ("://", " @ ", "file:", "\n--")  # an address, a place, or any option such as an index
    return faults + [f"mentions {word}" for word in words if word in lock]


def test_conda_users_get_exactly_the_pins_of_pyproject() -> None:
    assert find_differences(declared_pins(), (ROOT / "environment.yml").read_text(encoding="utf-8")) == set()


def test_another_pin_and_a_missing_one_are_found() -> None:
    environment = "dependencies: [python, {pip: ['mlflow==3.16.*', '-e .']}]"
    assert find_differences(["mlflow==3.17.*", "click>=8"], environment) == {
        "mlflow==3.16.*",
        "mlflow==3.17.*",
        "click>=8",
    }


def test_conda_environment_installs_the_python_that_pyproject_requires() -> None:
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    wanted = tomllib.loads(PYPROJECT)["project"]["requires-python"]
    assert f"python{wanted}" in environment["dependencies"]


def test_every_dependency_says_why_it_is_there() -> None:
    assert find_unexplained(declared_pins(), PYPROJECT) == []


def test_a_dependency_without_a_reason_is_found() -> None:
    pyproject = 'dependencies = [\n  "left-pad==1.0",\n  "click>=8", # the command line\n]'
    assert find_unexplained(["left-pad==1.0", "click>=8"], pyproject) == ["left-pad==1.0"]


def test_the_lock_has_hashes_and_says_nothing_about_an_index_or_this_machine() -> None:
    assert find_lock_faults(LOCK) == []
    assert len(split_lock(LOCK)) > len(declared_pins())


@pytest.mark.parametrize(
    "lock",
    [
        "click==8.5.0",
        "--some-index https://example.org/simple\nclick==8.5.0 --hash=sha256:aa",
        "--some-option wheels\nclick==8.5.0 --hash=sha256:aa",
        "click @ file:///somewhere/click.whl",
        "-e .",
        "click>=8 --hash=sha256:aa",
    ],
)
def test_a_lock_that_installs_something_else_elsewhere_is_found(lock: str) -> None:
    assert find_lock_faults(lock)


@pytest.mark.parametrize("pin", declared_pins())
def test_the_lock_has_every_dependency_at_a_version_that_it_allows(pin: str) -> None:
    wanted = Requirement(pin)
    version, _ = split_lock(LOCK)[canonicalize_name(wanted.name)]
    assert Version(version) in wanted.specifier


@pytest.mark.parametrize("extra", OWN_LOCK)
def test_an_extra_with_its_own_lock_adds_to_the_other_and_changes_nothing_in_it(extra: str) -> None:
    own, common = split_lock(OWN_LOCK[extra]), split_lock(LOCK)
    assert find_lock_faults(OWN_LOCK[extra]) == []
    pins = tomllib.loads(PYPROJECT)["project"]["optional-dependencies"][extra]
    assert find_unexplained(pins, PYPROJECT) == []
    for wanted in map(Requirement, pins):
        assert Version(own[canonicalize_name(wanted.name)][0]) in wanted.specifier
    assert {name: own[name][0] for name in own if name in common} == {
        name: common[name][0] for name in own if name in common
    }
