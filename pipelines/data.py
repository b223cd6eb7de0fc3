"""`lpm data`: look at datasets, check them, and take people out of them."""

from pathlib import Path
from typing import Literal

import click
from rich.console import Console
from rich.markup import escape

OUT = Console()
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
WORKSPACE, CACHE = Path("workspace"), Path(".work")


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
    from components.common import RichProgress
    from components.train.preview import preview
    from pipelines.config import load_config

    shown = preview(dataset, out, load_config(overrides).train, batches, RichProgress())
    OUT.print(f"wrote {escape(str(out))}: {shown} windows", soft_wrap=True)


@data.command("browse")
@click.argument("dataset", type=FOLDER)
@click.option("--serve", is_flag=True, help="Serve the page on 127.0.0.1, where clips can be played.")
@click.option("--port", default=8010, show_default=True, help="Port of --serve.")
@click.option("--autoencoder", type=FOLDER, help="The one that DATASET was encoded with; the shipped one if left out.")
def browse_command(dataset: Path, serve: bool, port: int, autoencoder: Path | None) -> None:
    """Say where the page of DATASET is: funnel, kept and dropped clips with their tracks, thresholds to play with.

    The page opens from disk. With --serve it also plays clips, decoded from their latents.
    """
    from components.curate.browse import page_of, server

    page = page_of(dataset)
    if not serve:
        OUT.print(f"open {escape(page.as_uri())}", soft_wrap=True)
        return
    with server(dataset, port, autoencoder) as running:
        OUT.print(f"open http://127.0.0.1:{running.server_port}/ (Ctrl-C ends it)", soft_wrap=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            OUT.print("stopped")


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
    from components.common import read_json
    from components.curate.gate import validate
    from components.curate.manifest import read_rows

    rows, described = read_rows(dataset / "manifest.parquet"), read_json(dataset / "dataset.json")
    low, high = described.get("clip_frames", (1, 10**6))
    validate(rows, dataset, (low, high))
    OUT.print(
        f"{described['clips']} clips hold; see {escape(str(dataset / 'validation' / 'index.html'))}", soft_wrap=True
    )


@data.command("forget")
@click.argument("dataset", type=FOLDER)
@click.option("--identity", default="", help="A person, by the manifest's person_id.")
@click.option("--source", default="", help="A recording, by source id, file name, or SHA-256 (8 digits do).")
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
    in the report. A tombstone (digests only) keeps ingest and curate from letting them in again, under any file name.
    Other copies (the source folder, DVC's cache, other runs) are yours to remove; models that learned from them are
    listed.
    """
    if bool(identity) == bool(source):
        raise ValueError("give either --identity or --source")
    from components.curate.forget import Places, foresee, forget, models_of, tracked_models

    kind: Literal["identity", "source"] = "identity" if identity else "source"
    place = None if keep_raw else raw or dataset.parent / "raw"
    if place is not None and dataset.is_dir() and not (place / "sources.jsonl").is_file():
        raise ValueError(f"{place} is no raw folder: give the one that the dataset was curated from, or --keep-raw")
    if dry_run:
        for what, count in foresee(dataset, kind, identity or source, place).items():
            OUT.print(f"would remove {count} {what}", soft_wrap=True)
        return
    places = Places(raw=place, cache=cache, tombstones=cache / "tombstones.json")
    report = forget(dataset, kind, identity or source, places)
    for what, count in report.removed.items():
        OUT.print(f"removed {count} {what}", soft_wrap=True)
    for digest in report.items if digests else ():
        OUT.print(f"  {digest}", soft_wrap=True)
    OUT.print(
        f"proved: none of the {len(report.items)} removed digests is left in {report.checked_files} files and members "
        f"of {', '.join(escape(str(folder)) for folder in report.folders)}; the dataset is now {report.after[:12]}",
        soft_wrap=True,
    )
    models = [*models_of(report.before, runs), *tracked_models(report.before, tracking_uri)]
    OUT.print(f"{len(models)} models learned from the dataset that held it" + (":" if models else ""), soft_wrap=True)
    for model in models:
        OUT.print(f"  {escape(model)}", soft_wrap=True)
