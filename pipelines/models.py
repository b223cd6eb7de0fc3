"""`lpm model`, `lpm autoencoder`, `lpm import-wan`: describe, measure, train and convert single models."""

from pathlib import Path

import click
from rich.markup import escape

from pipelines.console import FOLDER, OUT, OVERRIDES, WORKSPACE


@click.group()
def model() -> None:
    """Describe a model and measure how it uses its audio conditions."""


@model.command("describe")
@OVERRIDES
@click.option("--model", "folder", type=FOLDER, help="Describe the model in this folder, not the config's.")
@click.option("--tflops", default=400.0, show_default=True, help="Matmul throughput of the device (TFLOP/s).")
@click.option("--tb", default=3.0, show_default=True, help="Memory bandwidth of the device (TB/s).")
def model_describe(overrides: tuple[str, ...], folder: Path | None, tflops: float, tb: float) -> None:
    """Print parameters, FLOPs and bytes by part, and a lower bound on the time of one live chunk.

    The model is not built.

    lpm model describe profile=17b, or lpm model describe --model runs/latest/online
    """
    from lpm_model.describe import chunk_duration_s, chunk_workload, describe, read_model_shape
    from pipelines.config import load_config
    from pipelines.display import cost_table

    config = load_config(overrides)
    shape, online, size_px = config.train.model, config.distill.online, config.curate.size_px
    if folder is not None:
        shape, online, size_px = read_model_shape(folder, online)
    cost = describe(shape, chunk_workload(online, size_px))
    OUT.print(cost_table(cost))
    floor, passes = cost.min_time_s(tflops, tb), online.passes
    load = passes * floor / chunk_duration_s(online)
    verdict = f"real time, {1 - load:.0%} idle" if load <= 1 else f"{load:.1f} times slower than real time"
    OUT.print(
        f"on a device of {tflops:g} TFLOP/s and {tb:g} TB/s (--tflops, --tb) one pass takes at least "
        f"{1000 * floor:,.3f} ms; the {passes} passes of a chunk (steps and history) "
        f"{1000 * passes * floor:,.3f} ms, for a chunk of {1000 * chunk_duration_s(online):,.0f} ms: {verdict}",
        soft_wrap=True,
    )


@model.command("conditioning-gap")
@click.option("--base", type=FOLDER, default=WORKSPACE / "base", show_default=True, help="Folder of a Base LPM.")
@click.option("--dataset", type=FOLDER, default=WORKSPACE / "dataset", show_default=True, help="Folder to read.")
@click.option("--windows", default=128, show_default=True, help="Maximum number of windows per audio condition.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON at the end.")
def model_conditioning_gap(base: Path, dataset: Path, windows: int, as_json: bool) -> None:
    """Ablate the audio conditions of a Base LPM: how much its loss rises with the audio of another clip.

    Measured on people that the training has not seen: those held out of its dataset, or those of another dataset.
    """
    import json

    from lpm_model.training.base.validation import conditioning_gaps, gap_metrics

    gaps = conditioning_gaps(base, dataset, windows)
    for voice, gap in gaps.items():
        OUT.print(
            f"{voice:<6} exchanged: loss {gap.loss:.4f} -> {gap.loss + gap.mean:.4f}, {gap.mean:+.4f} "
            f"({gap.low:+.4f} to {gap.high:+.4f} with 90 %), {gap.windows} windows of {gap.clips} clips",
            soft_wrap=True,
        )
    if as_json:
        click.echo(json.dumps({name: round(value, 6) for name, value in gap_metrics(gaps).items()}))


@click.group()
def autoencoder() -> None:
    """Train the video autoencoder."""


@autoencoder.command("train")
@click.argument("videos", type=FOLDER)
@OVERRIDES
@click.option("--out", type=FOLDER, default=WORKSPACE / "autoencoder", show_default=True, help="Folder to write.")
@click.option("--size", default=128, show_default=True, help="Side of the square videos to read (px).")
def autoencoder_train(videos: Path, overrides: tuple[str, ...], out: Path, size: int) -> None:
    """Train the tiny autoencoder on a folder of square MP4s (steps=2000 batch=8 ...).

    To encode with it in curation: lpm run curate.autoencoder=DIR
    """
    if not videos.is_dir():
        raise ValueError(f"{videos} is not a folder: give one with square MP4s, such as runs/latest/raw/media")
    from components.runtime.progress import RichProgress
    from lpm_model.autoencoder.tiny import AutoencoderConfig
    from lpm_model.training.autoencoder import AutoencoderTraining, train_autoencoder
    from pipelines.config import config_from_overrides

    settings = config_from_overrides(AutoencoderTraining, overrides)
    metrics = train_autoencoder(videos, out, AutoencoderConfig(), settings, RichProgress(), size_px=size)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    OUT.print(f"wrote {escape(str(out))} ({figures})", soft_wrap=True)


@click.command("import-wan")
@click.argument("source", type=FOLDER)
@click.option("--out", type=FOLDER, default=WORKSPACE / "wan", show_default=True, help="Folder to write.")
@click.option("--back", is_flag=True, help="Convert an imported folder back to the format of diffusers.")
def import_wan(source: Path, out: Path, back: bool) -> None:
    """Convert the weights of Wan 2.1's transformer from SOURCE, a folder with config.json and safetensors files."""
    from lpm_model import wan_weights

    if back:
        wan_weights.export_wan(source, out)
    else:
        for name in wan_weights.import_wan(source, out):
            OUT.print(f"dropped {escape(name)}", soft_wrap=True)
    OUT.print(f"wrote {escape(str(out))}", soft_wrap=True)
