"""Profiles are whole recipes: nothing in which they differ comes from a default that was meant for another one."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines.config import CONF, SHARED, groups, load_config, to_plain

PROFILES = tuple(groups()["profile"])


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every setting."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shared_files(profile: str) -> list[str]:
    """Names of the shared files that a profile builds on."""
    defaults = read(f"profile/{profile}").get("defaults", [])
    return [str(entry).removeprefix(f"/{SHARED}/").partition("@")[0] for entry in defaults if entry != "_self_"]


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return values


def own(profile: str) -> dict[str, Any]:
    """Settings that the profile's own file states."""
    return {key: value for key, value in leaves(read(f"profile/{profile}")) if key != "defaults"}


def stated(profile: str) -> dict[str, Any]:
    """Settings that the profile's own file and the shared ones state."""
    found: dict[str, Any] = {}
    for name in shared_files(profile):
        found |= dict(leaves(read(f"{SHARED}/{name}")))
    return found | own(profile)


def effective(profile: str) -> dict[str, Any]:
    return dict(leaves(to_plain(load_config([f"profile={profile}"]))))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_states_every_setting_in_which_profiles_differ(profile: str) -> None:
    all_values = [effective(name) for name in PROFILES]
    differing = {key for key in all_values[0] if any(values.get(key) != all_values[0][key] for values in all_values)}
    assert differing
    assert differing <= set(stated(profile))


@pytest.mark.parametrize("profile", PROFILES)
def test_what_a_profile_states_is_what_a_run_gets(profile: str) -> None:
    values = effective(profile)
    assert {key: values[key] for key in stated(profile)} == stated(profile)


def test_what_small_and_17b_share_stands_once() -> None:
    small, large = own("small"), own("17b")
    assert {key for key in small if large.get(key) == small[key]} == set()


def test_every_shared_file_is_used() -> None:
    used = {name for profile in PROFILES for name in shared_files(profile)}
    assert used == {path.stem for path in (CONF / SHARED).glob("*.yaml")}


@pytest.mark.parametrize("name", ["profile/small", "profile/17b", f"{SHARED}/wan"])
def test_training_values_of_the_larger_profiles_name_their_source(name: str) -> None:
    """A comment on the line of a value, or on the heading above it; `own` says that the value was chosen here."""
    bare: list[str] = []
    commented: list[tuple[int, bool]] = []
    section = ""
    for line in (CONF / f"{name}.yaml").read_text().splitlines():
        if not line.strip() or line.lstrip().startswith(("#", "- ")):
            continue
        indent = len(line) - len(line.lstrip())
        commented = [(depth, covered) for depth, covered in commented if depth < indent]
        covered = "#" in line or any(covered for _, covered in commented)
        commented.append((indent, covered))
        section = line.split(":")[0] if not indent else section
        if section in {"train", "distill"} and not line.rstrip().endswith(":") and not covered:
            bare.append(line.strip())
    assert bare == []
