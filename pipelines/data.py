"""`lpm data`: look at datasets, check them, and take people out of them."""

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from components.curate.erase.target import Kind

OUT = Console()
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
WORKSPACE, CACHE = Path("workspace"), Path(".work")
WORDS = {
    "json": ("clip description", "clip descriptions"),
    "latents": ("encoded clip", "encoded clips"),
    "listen": ("sound that a person hears", "sounds that a person hears"),
    "speak": ("sound that a person makes", "sounds that a person makes"),
    "references": ("set of reference pictures", "sets of reference pictures"),
    "previews": ("preview picture", "preview pictures"),
    "kept first passes": ("kept first pass", "kept first passes"),
}
"""What is counted, in plain words, one and many; all else is a plural in s."""


ABOUT = """Look at datasets, check them, and remove people or recordings from them.

\b
lpm data browse runs/latest/dataset --serve              what was kept, what was dropped and why
lpm data preview --dataset runs/latest/dataset           what a training will see
lpm data check runs/latest/dataset                       every member and digest, after a copy
lpm data forget runs/latest/dataset --identity NAME      take a person out for good
lpm data thresholds                                      what decides whether a clip is kept
"""


@click.group(help=ABOUT)
def data() -> None:
    """The group of commands."""


@data.command("preview")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dataset", type=FOLDER, default=WORKSPACE / "dataset", show_default=True, help="Folder to read.")
@click.option("--out", type=FILE, default=Path("preview.html"), show_default=True, help="HTML file to write.")
@click.option("--batches", default=3, show_default=True, help="Batches shown, evenly over the training's steps.")
def preview_command(overrides: tuple[str, ...], dataset: Path, out: Path, batches: int) -> None:
    """Show what a training will see: pictures, voices, captions, references, states, loss weights, on one page.

    The settings are those of `lpm train`: lpm data preview --dataset runs/latest/dataset stage=listen
    """
    if not dataset.is_dir():
        raise ValueError(f"{dataset} is no folder: give the one that `lpm curate` wrote, such as runs/latest/dataset")
    from components.dataset.preview import preview
    from components.runtime.progress import RichProgress
    from pipelines.config import load_config

    shown = preview(dataset, out, load_config(overrides).train, batches, RichProgress())
    OUT.print(f"wrote {escape(str(out))}: {shown} windows", soft_wrap=True)


@data.command("browse")
@click.argument("dataset", type=FOLDER)
@click.option("--serve", is_flag=True, help="Serve the page on 127.0.0.1, where clips can be played.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8010, show_default=True, help="Port of --serve; 0 = a free one."
)
@click.option("--autoencoder", type=FOLDER, help="The one that DATASET was encoded with; the shipped one if left out.")
def browse_command(dataset: Path, serve: bool, port: int, autoencoder: Path | None) -> None:
    """Say where the page of DATASET is: funnel, kept and dropped clips with their tracks, thresholds to play with.

    The page opens from disk. With --serve it also plays clips, decoded from their latents.
    """
    from components.dataset.browse import page_of

    page = page_of(dataset)
    if not serve:
        OUT.print(f"open {escape(page.as_uri())}", soft_wrap=True)
        return
    with _server(dataset, port, autoencoder) as running:
        OUT.print(f"open http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)", soft_wrap=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            OUT.print("stopped")


def _server(dataset: Path, port: int, autoencoder: Path | None) -> "ThreadingHTTPServer":
    from components.dataset.browse import server

    try:
        return server(dataset, port, autoencoder)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        raise ValueError(
            f"127.0.0.1:{port} cannot be listened on ({error.strerror}): choose another with --port (0: a free one)"
        ) from error


@data.command("thresholds")
def thresholds_command() -> None:
    """Print the thresholds of every profile (curate.profile=NAME); a dash decides nothing.

    curate.thresholds.NAME=VALUE sets one over the profile's; null switches it off.
    """
    from dataclasses import asdict
    from typing import get_args

    from rich.table import Table

    from components.curate.config import Profile, Thresholds

    profiles: tuple[Profile, ...] = get_args(Profile)
    table = Table("threshold", *profiles)
    values = [asdict(Thresholds.profile(name)) for name in profiles]
    for name in values[0]:
        table.add_row(name, *("-" if of[name] is None else f"{of[name]:g}" for of in values))
    OUT.print(table)


@data.command("check")
@click.argument("dataset", type=FOLDER)
def check_command(dataset: Path) -> None:
    """Check every row, shard member, latent and digest of DATASET, and write its Data Docs anew."""
    from components.dataset.manifest import read_rows
    from components.dataset.validate import validate
    from lpm_model.files import read_json

    rows, described = read_rows(dataset / "manifest.parquet"), read_json(dataset / "dataset.json")
    low, high = described.get("clip_frames", (1, 10**6))
    validate(rows, dataset, (low, high))
    OUT.print(
        f"{described['clips']} clips hold; see {escape(str(dataset / 'validation' / 'index.html'))}", soft_wrap=True
    )


@data.command("forget")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--identity",
    default="",
    help="A person: a person_id of the manifest, or a sidecar's person_hint; in any case and spacing.",
)
@click.option(
    "--source",
    default="",
    help="A recording: the name of its file (with the folders below data.source), the path of a file with its bytes, "
    "its SHA-256 (8 digits do), or its source id.",
)
@click.option("--raw", type=FOLDER, help="Raw folder whose recordings go too; the one beside DATASET if left out.")
@click.option("--keep-raw", is_flag=True, help="Leave the raw folder as it is.")
@click.option("--cache", type=FOLDER, default=CACHE, show_default=True, help="Kept results that hold it go too.")
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Where models are looked for.")
@click.option("--tracking-uri", default="", help="MLflow that is asked for models.")
@click.option("--dry-run", is_flag=True, help="Say what would go, and remove nothing.")
@click.option("--digests", is_flag=True, help="Print the digest of everything that was removed.")
def forget_command(
    dataset: Path,
    identity: str,
    source: str,
    raw: Path | None,
    keep_raw: bool,
    cache: Path,
    runs: Path,
    tracking_uri: str,
    dry_run: bool,
    digests: bool,
) -> None:
    """Remove a person or a recording from DATASET for good, and prove it by digest.

    Every clip that shows them or lets them be heard goes, with its latents, references, sounds, preview and pictures
    in the report. A person takes along every recording that shows them or whose person_hint names them, whole: clips
    of others in it go too, and are named. A tombstone (digests only) keeps ingest and curate from letting them in
    again, under any file name.
    Other copies (the source folder, DVC's cache, other runs) are yours to remove; models that learned from them are
    listed.
    """
    if bool(identity) == bool(source):
        raise ValueError("give either --identity or --source")
    from components.curate.erase.erase import Places, foresee, forget, models_of, tracked_models

    kind: Kind = "identity" if identity else "source"
    place = None if keep_raw else raw or dataset.parent / "raw"
    if place is not None and dataset.is_dir() and not (place / "sources.jsonl").is_file():
        raise ValueError(f"{place} is no raw folder: give the one that the dataset was curated from, or --keep-raw")
    if dry_run:
        seen = foresee(dataset, kind, identity or source, place)
        _say(seen.notes)
        heard = f" ({seen.heard} of them of others, as they let the forgotten be heard)" if seen.heard else ""
        _say([f"would remove {_counted(seen.clips, 'clips')}{heard} and {_counted(seen.recordings, 'recordings')}"])
        return
    places = Places(raw=place, cache=cache, tombstones=cache / "tombstones.json")
    report = forget(dataset, kind, identity or source, places)
    _say(report.notes)
    _say(f"removed {_counted(count, what)}" for what, count in report.removed.items())
    _say(f"  {digest}" for digest in report.items if digests)
    _say(
        [
            f"proved: of {_counted(len(report.items), 'removed digests')} none is left in {report.checked_files} files "
            f"and members of {', '.join(map(str, report.folders))}; the dataset is now {report.after[:12]}"
        ]
    )
    models = [*models_of(report.before, runs), *tracked_models(report.before, tracking_uri)]
    _say([f"{_counted(len(models), 'models')} learned from the dataset that held it" + (":" if models else "")])
    _say(f"  {model}" for model in models)


def _say(lines: Iterable[str]) -> None:
    for line in lines:
        OUT.print(escape(line), soft_wrap=True)


def _counted(count: int, what: str) -> str:
    """A number of things in words."""
    one, many = WORDS.get(what, (what.removesuffix("s"), what))
    return f"{count} {one if count == 1 else many}"
