"""The report page, opened from disk in a real Chromium, and its server, which serves one folder only."""

import dataclasses
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

from components.curate.clips.decide import reject_reasons
from components.curate.config import Thresholds
from components.curate.report import outputs
from components.curate.report.page import BUDGET_BYTES, COUNTED, what_if, write_page
from components.curate.scorers import COLUMNS as SCORES
from components.dataset.browse import page_of, server
from components.dataset.manifest import read_rows

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[tuple[Any, list[str]]]:
    """Open a page in a browser; yield it with the URLs of all its requests."""
    from playwright.async_api import async_playwright

    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        page = await browser.new_page()
        errors: list[str] = []
        requests: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda line: errors.append(line.text) if line.type == "error" else None)
        page.on("request", lambda request: requests.append(request.url))
        await page.goto(url)
        yield page, requests
        await browser.close()
        assert errors == []


async def move(page: Any, name: str, value: float) -> None:
    await page.evaluate(
        "([name, value]) => { const s = document.querySelector(`[data-name=${name}]`); s.value = value;"
        " s.dispatchEvent(new Event('input')); }",
        [name, value],
    )


def clips_with(dataset: Path, **scores: list[float]) -> list[dict[str, Any]]:
    """Return kept clips with these scores and no others."""
    row = {**read_rows(dataset / "manifest.parquet")[0], **dict.fromkeys(SCORES)}
    row |= {"kept": True, "reason": "", "reasons": []}
    each = (dict(zip(scores, values, strict=True)) for values in zip(*scores.values(), strict=True))
    return [{**row, "clip_id": f"clip{number}", **values} for number, values in enumerate(each)]


@pytest.mark.browser
@needs_browser
async def test_printed_threshold_matches_the_reported_counts(dataset: Path, tmp_path: Path) -> None:
    """The printed threshold, passed to curate, keeps as many clips as the page reports."""
    given = {**dict.fromkeys((item.name for item in dataclasses.fields(Thresholds)), None), "max_luminance": 150.0}
    rows = clips_with(dataset, snr_db=[29.895844 + n for n in range(10)], luminance=[100.004 + n for n in range(10)])
    write_page(tmp_path, [], rows, [], {}, given, [])
    async with opened((tmp_path / "curation.html").as_uri()) as (page, _requests):
        for name, value, misses in (
            ("min_snr_db", 30.8958, 1),
            ("min_snr_db", 31.4, 2),
            ("max_luminance", 104.0041, 5),
        ):
            await move(page, name, value)
            printed = await page.inner_text("#setting")
            assert printed.startswith(f"curate.thresholds.{name}=")
            strict = Thresholds(**{**given, name: float(printed.partition("=")[2])})
            left = [row for row in rows if not reject_reasons({score: row[score] for score in SCORES}, strict)]
            assert len(left) == 10 - misses
            assert f"with these thresholds {len(left)} (0 gained, {misses} lost)" in await page.inner_text("#verdict")
            row = await page.inner_text(f"#sliders div:has([data-name={name}])")
            assert f"(rejects {misses})" in row
            await page.click("#reset")


@pytest.mark.browser
@needs_browser
async def test_reset_button_restores_one_slider(dataset: Path, tmp_path: Path) -> None:
    rows = clips_with(dataset, snr_db=[29.895844 + n for n in range(10)], luminance=[100.004 + n for n in range(10)])
    write_page(tmp_path, [], rows, [], {}, {"min_snr_db": None, "max_luminance": 150.0}, [])
    async with opened((tmp_path / "curation.html").as_uri()) as (page, _requests):
        for name, value in (("min_snr_db", 35.0), ("max_luminance", 105.0)):
            await move(page, name, value)
        await page.click("#sliders div:has([data-name=max_luminance]) button")
        assert await page.inner_text("#setting") == "curate.thresholds.min_snr_db=35"
        await page.press("[data-name=min_snr_db]", "Home")
        assert await page.inner_text("#setting") == ""
        assert "min_snr_db off" in await page.inner_text("#sliders")


@pytest.mark.browser
@needs_browser
async def test_slider_reports_gained_and_lost_clips(dataset: Path) -> None:
    rows = read_rows(dataset / "manifest.parquet")
    values = sorted(row["sharpness"] for row in rows if row["kept"])
    limit = (values[0] + values[1]) / 2
    strict = {**json.loads((dataset / "dataset.json").read_text())["thresholds"], "min_sharpness": limit}
    expected = [
        row for row in rows if row["kept"] and not reject_reasons({n: row[n] for n in SCORES}, Thresholds(**strict))
    ]
    kept = sum(row["kept"] for row in rows)
    async with opened((dataset / "curation.html").as_uri()) as (page, requests):
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
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []


def test_page_shows_every_reason_within_the_size_budget(dataset: Path, tmp_path: Path) -> None:
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
    shown = page.count('<div class="card"') // 3
    assert 0 < shown < 20
    for heading in ("Kept clips", "Dropped: sharpness_below_min", "Dropped: no_reference"):
        assert f"{heading} ({shown} of 20 shown)" in page
    assert len(what_if(many, {})["clips"]) == 5000


def test_page_escapes_untrusted_text(dataset: Path, tmp_path: Path) -> None:
    row = {**read_rows(dataset / "manifest.parquet")[0], "clip_id": "</script><b>", "caption": "<img src=x>"}
    write_page(tmp_path, [], [row], [{"file": "<i>", "reason": "r", "detail": "d"}], {}, {}, [])
    page = (tmp_path / "curation.html").read_text()
    for text in ("</script><b>", "<img src=x>", "<i>"):
        assert text not in page


def test_card_shows_the_deciding_score_and_its_meaning(dataset: Path, tmp_path: Path) -> None:
    (row,) = clips_with(dataset, sync=[0.377], av_sync=[0.3386], copied_ratio=[1.0])
    reasons = ["av_sync_below_min", "copied_ratio_above_max"]
    row |= {"kept": False, "reason": reasons[0], "reasons": reasons, "partner_source_id": "Ada", "caption": "A person."}
    write_page(tmp_path, [], [row], [], {}, {"min_av_sync": 0.35, "max_copied_ratio": 0.3}, [])
    page = (tmp_path / "curation.html").read_text()
    title = page.partition('<p class="title">')[2].partition("</p>")[0]
    assert ", av_sync 0.339" in title
    assert ", sync " not in title
    assert "the same recording" in page.partition(">copied_ratio 1 &gt; 0.3<")[0].rpartition("<span")[2]
    assert '<p>A person.</p><p class="partner">talks with Ada</p>' in page
    assert "(1)</h2>" in page


def test_page_head_and_funnel_describe_their_counts(dataset: Path, report: dict[str, Any], tmp_path: Path) -> None:
    assert {stage["stage"] for stage in report["funnel"]} == set(COUNTED)
    shutil.copyfile(dataset / "timing.json", tmp_path / "timing.json")
    described = json.loads((dataset / "dataset.json").read_text())
    outputs.page(tmp_path, [], {**report, "seconds": 1179.292, "state_seconds": {"idle": 50.375}}, described)
    text = (tmp_path / "curation.html").read_text()
    for fact in ("<b>1,179</b>seconds<", "<b>50.4</b>seconds idle<", "<b>2 of 2</b>sources with a kept clip<"):
        assert fact in text
    assert ">sources</text>" in text
    assert ">cut (frames)</text>" in text
    assert "before erasure" not in text
    for words in COUNTED.values():
        assert words in text


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


def test_server_serves_only_the_dataset_folder(served: int, dataset: Path) -> None:
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


def test_server_decodes_a_clip(served: int, dataset: Path) -> None:
    row = next(row for row in read_rows(dataset / "manifest.parquet") if row["kept"])
    status, data = get(served, f"/clips/{row['clip_id']}.mp4")
    assert status == 200
    with av.open(io.BytesIO(data)) as container:
        assert sum(1 for _ in container.decode(video=0)) == row["frames"] - 1
        assert container.streams.audio[0].rate == 24_000


@pytest.mark.browser
@needs_browser
@pytest.mark.parametrize("part", ["img", "button"])
async def test_served_page_plays_a_clip(part: str, served: int) -> None:
    async with opened(f"http://127.0.0.1:{served}/") as (page, _requests):
        await page.locator(f".card[data-kept=true] {part}").first.click()
        seconds = await page.locator("video").evaluate(
            "v => new Promise((done) => v.duration ? done(v.duration)"
            " : v.addEventListener('loadedmetadata', () => done(v.duration)))"
        )
        assert seconds > 1.5


def test_server_rejects_another_autoencoder_or_folder(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--autoencoder"):
        server(dataset, 0)
    with pytest.raises(ValueError, match="is missing"):
        page_of(tmp_path)
