"""The page and its server: opened from disk in a real Chromium, and served for one folder only."""

import http.client
import io
import json
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import av
import pytest

from components.curate.browse import page_of, server
from components.curate.config import Thresholds
from components.curate.manifest import SCORES, read_rows
from components.curate.quality import decide
from components.curate.report import BUDGET_BYTES, what_if, write_page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)"),
]


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Any, list[str]]]:
    """A page of a browser, and everything that it asks the network for."""
    from playwright.async_api import async_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = await browser.new_page()
        errors: list[str] = []
        asked: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(url)
        yield page, asked
        await browser.close()
        assert errors == []


async def move(page: Any, name: str, value: float) -> None:
    await page.evaluate(
        "([name, value]) => { const s = document.querySelector(`[data-name=${name}]`); s.value = value;"
        " s.dispatchEvent(new Event('input')); }",
        [name, value],
    )


@pytest.mark.parametrize("_", [pytest.param(0, marks=needs_browser)])
async def test_a_slider_says_what_would_change(_: int, dataset: Path) -> None:
    rows = read_rows(dataset / "manifest.parquet")
    values = sorted(row["sharpness"] for row in rows if row["kept"])
    limit = (values[0] + values[1]) / 2
    strict = {**json.loads((dataset / "dataset.json").read_text())["thresholds"], "min_sharpness": limit}
    expected = [row for row in rows if row["kept"] and not decide({n: row[n] for n in SCORES}, Thresholds(**strict))]
    kept = sum(row["kept"] for row in rows)
    async with opened((dataset / "curation.html").as_uri()) as (page, asked):
        assert f"kept {kept} of {len(rows)} clips" in await page.inner_text("#verdict")
        await move(page, "min_sharpness", limit)
        verdict = await page.inner_text("#verdict")
        assert f"with these thresholds {len(expected)} (0 gained, {kept - len(expected)} lost)" in verdict
        assert "Lost:" in await page.inner_text("#changed")
        assert await page.locator(".card.lost").count() == kept - len(expected)
        await page.click("#reset")
        assert f"with these thresholds {kept} (0 gained, 0 lost)" in await page.inner_text("#verdict")
        assert await page.locator("button", has_text="play").count() == 0
        assert await page.locator("svg.funnel rect").count() == 10
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_the_page_holds_every_reason_and_stays_small(dataset: Path, tmp_path: Path) -> None:
    rows = read_rows(dataset / "manifest.parquet")
    many = []
    for number in range(6000):
        row = dict(rows[number % len(rows)])
        reason = ("", "sharpness_below_min", "no_reference")[number % 3]
        reasons = [reason] if reason else []
        many.append({**row, "clip_id": f"clip{number}", "kept": not reason, "reason": reason, "reasons": reasons})
    (tmp_path / "previews").mkdir()
    for number in range(60):
        (tmp_path / "previews" / f"clip{number}.jpg").write_bytes(bytes(400_000))
    write_page(tmp_path, [], many[:60], [], {}, {"min_sharpness": 0.1}, [])
    page = (tmp_path / "curation.html").read_text()
    assert len(page) <= BUDGET_BYTES
    for heading in ("Kept clips (20)", "Dropped: sharpness_below_min (20)", "Dropped: no_reference (20)"):
        assert heading in page
    assert len(what_if(many, {})["clips"]) == 5000


def test_texts_from_files_cannot_break_the_page(dataset: Path, tmp_path: Path) -> None:
    row = {**read_rows(dataset / "manifest.parquet")[0], "clip_id": "</script><b>", "caption": "<img src=x>"}
    write_page(tmp_path, [], [row], [{"file": "<i>", "reason": "r", "detail": "d"}], {}, {}, [])
    page = (tmp_path / "curation.html").read_text()
    for text in ("</script><b>", "<img src=x>", "<i>"):
        assert text not in page


@pytest.fixture(scope="module")
def served(dataset: Path, autoencoder: Path) -> Iterator[int]:
    with server(dataset, 0, autoencoder) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running.server_port
        running.shutdown()


def get(port: int, path: str, host: str = "127.0.0.1", method: str = "GET") -> tuple[int, bytes]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    link.putrequest(method, path, skip_host=True)
    link.putheader("Host", f"{host}:{port}")
    link.endheaders()
    answer = link.getresponse()
    data = answer.read()
    link.close()
    return answer.status, data


def test_only_the_folder_is_served(served: int, dataset: Path) -> None:
    (dataset.parent / "secret.json").write_text("{}")
    link = dataset / "previews" / "out.json"
    link.symlink_to(dataset.parent / "secret.json")
    try:
        assert get(served, "/")[0] == 302
        assert get(served, "/curation.html")[1] == (dataset / "curation.html").read_bytes()
        assert get(served, "/validation/index.html")[0] == 200
        outside = ("/../secret.json", "/%2e%2e/secret.json", "/previews/out.json", "/previews/", "/manifest.parquet",
                   "/shards/train-000000.tar", "/clips/nothing.mp4")  # fmt: skip
        assert {path: get(served, path)[0] for path in outside} == dict.fromkeys(outside, 404)
        assert get(served, "/curation.html", host="evil.example")[0] == 403
        assert get(served, "/curation.html", method="POST")[0] == 501
    finally:
        link.unlink()


def test_a_clip_plays(served: int, dataset: Path) -> None:
    row = next(row for row in read_rows(dataset / "manifest.parquet") if row["kept"])
    status, data = get(served, f"/clips/{row['clip_id']}.mp4")
    assert status == 200
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) == row["frames"] - 1
        assert container.streams.audio[0].rate == 24_000


@pytest.mark.parametrize("_", [pytest.param(0, marks=needs_browser)])
async def test_a_served_page_plays_a_clip(_: int, served: int) -> None:
    async with opened(f"http://127.0.0.1:{served}/") as (page, _asked):
        await page.locator("button", has_text="play").first.click()
        seconds = await page.locator("video").evaluate(
            "v => new Promise((done) => v.duration ? done(v.duration)"
            " : v.addEventListener('loadedmetadata', () => done(v.duration)))"
        )
        assert seconds > 1.5


def test_another_autoencoder_or_folder_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--autoencoder"):
        server(dataset, 0)
    with pytest.raises(ValueError, match="is missing"):
        page_of(tmp_path)
