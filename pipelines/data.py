"""`lpm data`: inspect and check datasets, and erase people or recordings from them."""

import errno
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from http.server import ThreadingHTTPServer

    from components.curate.erase.target import TargetKind

OUT = Console()
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
WORKSPACE, CACHE = Path("workspace"), Path(".work")
LABELS = {
    "json": ("clip description", "clip descriptions"),
    "latents": ("encoded clip", "encoded clips"),
    "listen": ("listener audio track", "listener audio tracks"),
    "speak": ("speaker audio track", "speaker audio tracks"),
    "references": ("set of reference images", "sets of reference images"),
    "previews": ("preview image", "preview images"),
    "cached analyses": ("cached analysis", "cached analyses"),
}
"""Singular and plural of counted items; all others are regular plurals."""


ABOUT = """Inspect and check datasets, and erase people or recordings from them.

\b
lpm data browse runs/latest/dataset --serve              kept and dropped clips, and why
lpm data preview --dataset runs/latest/dataset           the batches a training run will use
lpm data check runs/latest/dataset                       verify every member and digest
lpm data erase runs/latest/dataset --identity NAME       erase a person for good
lpm data thresholds                                      the thresholds of every profile
"""


@click.group(help=ABOUT)
def data() -> None:
    """The group of commands."""


@data.command("preview")
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--dataset", type=FOLDER, default=WORKSPACE / "dataset", show_default=True, help="Folder to read.")
@click.option("--out", type=FILE, default=Path("preview.html"), show_default=True, help="HTML file to write.")
@click.option(
    "--batches", default=3, show_default=True, help="Number of batches, spread evenly over the training steps."
)
def preview_command(overrides: tuple[str, ...], dataset: Path, out: Path, batches: int) -> None:
    """Write one page with training batches: video, audio, captions, references, states and loss weights.

    Takes the same settings as `lpm train`: lpm data preview --dataset runs/latest/dataset stage=listen
    """
    if not dataset.is_dir():
        raise ValueError(
            f"{dataset} is not a folder: give the one that `lpm curate` wrote, such as runs/latest/dataset"
        )
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
@click.option(
    "--autoencoder", type=FOLDER, help="Autoencoder that DATASET was encoded with [default: the bundled one]."
)
def browse_command(dataset: Path, serve: bool, port: int, autoencoder: Path | None) -> None:
    """Print the location of the report page of DATASET: funnel, kept and dropped clips, and threshold sliders.

    The page opens from disk. With --serve it also plays clips, decoded from their latents.
    """
    from components.dataset.browse import page_of

    page = page_of(dataset)
    if not serve:
        OUT.print(f"open {escape(page.as_uri())}", soft_wrap=True)
        return
    with _server(dataset, port, autoencoder) as running:
        OUT.print(f"open http://127.0.0.1:{running.server_port}/ (stop with Ctrl-C)", soft_wrap=True)
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
            f"127.0.0.1:{port} is not available ({error.strerror}): choose another port with --port (0 = a free one)"
        ) from error


@data.command("thresholds")
def thresholds_command() -> None:
    """Print the thresholds of every profile (curate.profile=NAME) and what they mean; a dash means switched off.

    curate.thresholds.NAME=VALUE overrides one; null switches it off.
    """
    from dataclasses import asdict
    from typing import get_args

    from rich.table import Table

    from components.curate.config import Profile, Thresholds
    from lpm_model.config import help_texts

    profiles: tuple[Profile, ...] = get_args(Profile)
    meanings = help_texts(Thresholds)
    table = Table()
    for name in ("threshold", *profiles):
        table.add_column(name, no_wrap=True)
    table.add_column("meaning")
    values = [asdict(Thresholds.profile(name)) for name in profiles]
    for name in values[0]:
        table.add_row(name, *("-" if of[name] is None else f"{of[name]:g}" for of in values), escape(meanings[name]))
    OUT.print(table)


@data.command("check")
@click.argument("dataset", type=FOLDER)
def check_command(dataset: Path) -> None:
    """Check every row, shard member, latent and digest of DATASET, and rewrite its Data Docs."""
    from components.dataset.manifest import read_rows
    from components.dataset.validate import validate
    from lpm_model.files import read_json

    rows, described = read_rows(dataset / "manifest.parquet"), read_json(dataset / "dataset.json")
    low, high = described.get("clip_frames", (1, 10**6))
    validate(rows, dataset, (low, high))
    OUT.print(
        f"{described['clips']} clips are valid; see {escape(str(dataset / 'validation' / 'index.html'))}",
        soft_wrap=True,
    )


@data.command("erase")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--identity",
    default="",
    help="Person: a person_id of the manifest, or a sidecar's person_hint, in any case and spacing.",
)
@click.option(
    "--source",
    default="",
    help="Recording: its file name (with the folders below data.source), the path of a file with the same bytes, its "
    "SHA-256 (8 digits suffice), or its source id.",
)
@click.option("--raw", type=FOLDER, help="Raw folder to erase from as well [default: the one next to DATASET].")
@click.option("--keep-raw", is_flag=True, help="Do not touch the raw folder.")
@click.option("--cache", type=FOLDER, default=CACHE, show_default=True, help="Cache folder to erase from as well.")
@click.option(
    "--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Folder that is searched for affected models."
)
@click.option("--tracking-uri", default="", help="MLflow server that is searched for affected models.")
@click.option("--dry-run", is_flag=True, help="Print what would be erased, without changing anything.")
@click.option("--digests", is_flag=True, help="Print the digest of every erased item.")
def erase_command(
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
    """Erase a person or a recording from DATASET for good, and verify it by digest.

    Removes every clip with their face or voice, with its latents, references, audio, preview and images in the report.
    Erasing a person erases every recording that shows them or whose person_hint names them, as a whole: clips of other
    people in it are removed too, and reported. A tombstone (digests only) makes ingest and curate reject them in the
    future, under any file name.
    Other copies (the source folder, DVC's cache, other runs) are not touched; models that were trained on them are
    listed.
    """
    if bool(identity) == bool(source):
        raise ValueError("give either --identity or --source")
    from components.curate.erase.erase import Places, erase, mlflow_runs_trained_on, models_trained_on, preview_erase

    kind: TargetKind = "identity" if identity else "source"
    place = None if keep_raw else raw or dataset.parent / "raw"
    if place is not None and dataset.is_dir() and not (place / "sources.jsonl").is_file():
        raise ValueError(f"{place} is not a raw folder: give the one that the dataset was curated from, or --keep-raw")
    if dry_run:
        preview = preview_erase(dataset, kind, identity or source, place)
        _print(preview.notes)
        others = f" ({preview.clips_of_others} of them of other people, with audio of the erased one)"
        clips = _counted(preview.clips, "clips") + (others if preview.clips_of_others else "")
        _print([f"would erase {clips} and {_counted(preview.recordings, 'recordings')}"])
        return
    places = Places(raw=place, cache=cache, tombstones=cache / "tombstones.json")
    report = erase(dataset, kind, identity or source, places)
    _print(report.notes)
    _print(f"erased {_counted(count, what)}" for what, count in report.removed.items())
    _print(f"  {digest}" for digest in report.items if digests)
    _print(
        [
            f"verified: none of {_counted(len(report.items), 'erased digests')} is left in {report.checked_files} "
            f"files and members of {', '.join(map(str, report.folders))}; the new dataset digest is {report.after[:12]}"
        ]
    )
    models = [*models_trained_on(report.before, runs), *mlflow_runs_trained_on(report.before, tracking_uri)]
    _print(
        [f"{_counted(len(models), 'models')} trained on dataset versions that contained it" + (":" if models else "")]
    )
    _print(f"  {model}" for model in models)


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        OUT.print(escape(line), soft_wrap=True)


def _counted(count: int, what: str) -> str:
    """Format a number of items."""
    one, many = LABELS.get(what, (what.removesuffix("s"), what))
    return f"{count} {one if count == 1 else many}"
