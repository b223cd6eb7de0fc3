"""The committed page matches its source."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "serving" / "web"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def run(*command: str, cwd: Path) -> None:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=240)
    if done.returncode:
        pytest.fail(f"{' '.join(command)}: {done.stdout[-2000:]} {done.stderr[-2000:]}")


def test_committed_page_matches_its_source(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("Node and npm are not installed; the committed page is served as it is")
    work = tmp_path / "web"
    shutil.copytree(WEB, work, ignore=shutil.ignore_patterns("node_modules", "dist"))
    if (WEB / "node_modules" / ".package-lock.json").is_file():
        (work / "node_modules").symlink_to(WEB / "node_modules")
    else:
        installed = subprocess.run(
            [npm, "ci", "--prefer-offline"], cwd=work, capture_output=True, text=True, timeout=240
        )
        if installed.returncode:
            pytest.skip(f"the page's build tools cannot be installed here: {installed.stderr.strip()[-300:]}")
    run(npm, "run", "build", cwd=work)
    built, committed = files(work / "dist"), files(WEB / "dist")
    assert sorted(built) == sorted(committed)
    changed = [name for name in built if built[name] != committed[name]]
    assert changed == [], "rebuild the page: cd serving/web && npm ci && npm run build"


def test_page_requests_nothing_from_the_internet() -> None:
    text = b"".join(content for name, content in files(WEB / "dist").items() if not name.endswith(".svg"))
    assert b"http://" not in text
    assert b"https://" not in text


def test_lock_file_has_exact_versions_and_no_addresses() -> None:
    lock = json.loads((WEB / "package-lock.json").read_text())
    assert all("resolved" not in package for package in lock["packages"].values())
    assert "://" not in (WEB / "package-lock.json").read_text()
    wanted = json.loads((WEB / "package.json").read_text())["devDependencies"]
    assert all(version[0].isdigit() for version in wanted.values())
