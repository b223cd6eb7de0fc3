"""Profiles are complete recipes: every setting in which profiles differ is stated explicitly in each of them."""

from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from pipelines.config import CONF, SHARED, groups, load_config, to_plain

PROFILES = tuple(groups()["profile"])


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted key and the value of every setting."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def shared_files(profile: str) -> list[str]:
    """Return the names of the shared files that a profile includes."""
    defaults = read(f"profile/{profile}").get("defaults", [])
    return [str(entry).removeprefix(f"/{SHARED}/").partition("@")[0] for entry in defaults if entry != "_self_"]


def read(name: str) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((CONF / f"{name}.yaml").read_text())
    return values


def own_settings(profile: str) -> dict[str, Any]:
    """Return the settings in the profile's own file."""
    return {key: value for key, value in leaves(read(f"profile/{profile}")) if key != "defaults"}


def stated_settings(profile: str) -> dict[str, Any]:
    """Return the settings in the profile's own file and in the shared files that it includes."""
    found: dict[str, Any] = {}
    for name in shared_files(profile):
        found |= dict(leaves(read(f"{SHARED}/{name}")))
    return found | own_settings(profile)


def effective_settings(profile: str) -> dict[str, Any]:
    return dict(leaves(to_plain(load_config([f"profile={profile}"]))))


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_state_every_setting_in_which_they_differ(profile: str) -> None:
    all_values = [effective_settings(name) for name in PROFILES]
    differing = {key for key in all_values[0] if any(values.get(key) != all_values[0][key] for values in all_values)}
    assert differing
    assert differing <= set(stated_settings(profile))


@pytest.mark.parametrize("profile", PROFILES)
def test_stated_settings_are_effective(profile: str) -> None:
    values = effective_settings(profile)
    assert {key: values[key] for key in stated_settings(profile)} == stated_settings(profile)


def test_small_and_17b_repeat_no_shared_value() -> None:
    small, large = own_settings("small"), own_settings("17b")
    assert {key for key in small if large.get(key) == small[key]} == set()


def test_every_shared_file_is_used() -> None:
    used = {name for profile in PROFILES for name in shared_files(profile)}
    assert used == {path.stem for path in (CONF / SHARED).glob("*.yaml")}


@pytest.mark.parametrize("name", ["profile/small", "profile/17b", f"{SHARED}/wan"])
def test_training_values_of_larger_profiles_cite_their_source(name: str) -> None:
    """The source is a comment on the value's line or on a parent key; `own` marks a value chosen by this project."""
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
