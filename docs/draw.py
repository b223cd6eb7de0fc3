"""Generate the diagrams of docs/ from the code: `python -m docs.draw` writes them, a test compares them.

Steps, stages, packages and the order of curation are read from the tables, config classes, folders and functions that
define them; every other name in a diagram is looked up, so that a renamed one raises an error here.
"""

import argparse
import ast
import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path

from docs.svg import MUTED, Box, Drawing

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
IMPORTS = {
    "pipelines": ("components", "serving", "lpm_model"),
    "components": ("serving", "lpm_model"),
    "serving": ("lpm_model",),
    "lpm_model": (),
}
"""Import arrows between packages, as drawn."""
STEP_TEXTS = {
    "ingest": "videos with licence and consent: rendered, a folder, s3://",
    "curate": "cut, filter, label, caption, encode into clips",
    "train": "Base LPM: flow matching over whole clips",
    "distill": "Online LPM: causal, a few steps a chunk",
    "evaluate": "LPM-Bench: scores between anchors, videos",
    "deploy": "registry, promotion gate, InferenceService",
}
STEPS_NOTE = (
    "Each step: folders in, one folder out, a report. It runs alone, as a DVC stage and as a Kubeflow task; "
    "MLflow records runs and models."
)
LAYERS = ("components.dataset", "components.runtime", "components.performer")
"""Shared folders of components: each may import those before it."""
PACKAGE_TEXTS = {
    "components.dataset": "the contract between steps: sources, manifest, states, shards, validation, tombstones",
    "components.runtime": "runner, cache keys, lineage, tracking, Kubeflow task, torchrun entry",
    "components.performer": "renders conversations with ground truth",
    "serving.media": "audio, MP4 and fragments, images, text to speech",
    "serving.transports": "WebSocket",
    "lpm_model.autoencoder": "frames to latents and back: tiny, Wan 2.1",
    "lpm_model.encoders": "audio and text: tiny, wav2vec2, umT5",
    "lpm_model.training": "base, distill, engine (loop, checkpoints, EMA, sharding)",
}
CURATION_TEXTS = {
    "read_sources": "sources.jsonl",
    "skip_sources": "consent, tombstones, copies",
    "analysis_pass": "one analysis a source, in worker processes",
    "link_sources": "cameras and partners of one conversation",
    "clip_pass": "the clips of a source, in worker processes",
    "assemble": "people across sources, rows, shards",
    "build_report": "funnel, validation",
    "write_report": "page and JSON",
}
Rows = Sequence[tuple[str, str, str]]
"""Steps of a pass: name, text, and the file or folder that implements it."""
ANALYSIS_ROWS: Rows = (
    ("probe, decode", "limits of time, memory and size; 24 fps", "components/curate/video/decode.py"),
    ("shots, faces, face mesh", "cuts, tracks, landmarks, identity", "components/curate/video/shots.py"),
    ("image quality, scorers", "every frame once, reduced", "components/curate/scorers"),
    ("speech", "voice activity of the audio track", "components/curate/labels/speech.py"),
)
CLIP_ROWS: Rows = (
    ("states, turns", "who speaks, listens or idles, per frame", "components/curate/labels/states.py"),
    ("plan, crop", "windows in one state or turn, crops", "components/curate/clips/plan.py"),
    ("score, decide", "every score and every reason is stored", "components/curate/clips/decide.py"),
    ("captions and latents", "text, reference images, encoded frames", "components/curate/clips/encode.py"),
)
CACHE_TEXT = (
    "Analysis: retained across runs in the analysis cache, so that new thresholds repeat the clip pass only.\n"
    "ROI cache: pixels around faces, for one run; what it lacks is decoded again, to the same bytes."
)
STAGE_TEXTS = {
    "ode": ("Student", "Teacher's trajectories", "Regression to the teacher's clean latents", "green"),
    "off_policy": ("Student, critic", "Teacher's clips, re-noised", "DMD and a perceptual term", "blue"),
    "on_policy": ("Student, critic", "The student's own roll-outs", "DMD", "blue"),
    "refiner": ("Refiner, critic", "The student's roll-outs at the refiner's noise level", "DMD", "violet"),
    "long": ("Student, critic", "One roll-out that continues across steps while conditions change", "DMD", "blue"),
}  # fmt: skip


MONITOR_TEXT = (
    "rolls out held-out clips, retains the best step, and ends a stage whose motion, variance or colour "
    "leaves its bounds"
)
ROLE_NOTES = (
    "The teacher is the frozen Base LPM; student, refiner and critic start from it. "
    "The critic models the student's clips.",
    "With distill.lora.rank above 0 all roles share one frozen base and differ in their adapters.",
    "All roll-outs, of training and of serving, run through one block loop: lpm_model/rollout.py.",
)
PUMP = (
    ("page", (160, 60, 200), "page or client.py", "microphone, text, interrupts", "green"),
    ("screen", (850, 60, 200), "page or client.py", "video and voice on one clock", "green"),
    ("wire", (160, 156, 200), "serving.transports.connection:Connection", "typed messages both ways", "blue"),
    ("session", (160, 244, 200), "serving.session:Session.handle", "audio into buffers, credits out", "blue"),
    ("pace", (400, 156, 210), "serving.pacing:Pace.release", "a chunk when the playhead needs one", "blue"),
    ("chunk", (400, 244, 210), "serving.duplex:Duplex.next_chunk", "voice, user audio, state, epoch", "blue"),
    ("cut", (650, 244, 190), "interrupted meanwhile?", "then muted: no stale voice", "amber"),
    ("outbox", (850, 156, 200), "serving.transports.outbox:Outbox.send_media", "to the attached connection", "blue"),
    ("step", (400, 348, 210), "serving.engine:EngineSession.step", "Online LPM: audio to frames", "violet"),
    ("drift", (650, 348, 190), "serving.drift:DriftMeter.add", "metrics of drift and motion", "violet"),
    ("encode", (860, 348, 200), "serving.media.fragments:ChunkEncoder.encode", "frames and voice to fMP4", "violet"),
    ("speech", (160, 452, 320), "text to speech", "sentence by sentence, within the credits", "violet"),
)
"""Key, place and width, name (looked up in the code) and text of each box of the serving pump."""
PUMP_NOTES = (
    "The engine has one thread and so one owner; the event loop only moves bytes.",
    "A session outlives its connection: it can be resumed within 30 s.",
)


def name_of(path: str) -> str:
    """Look up `module:attribute.attribute` and return its last two names.

    Raises:
        AttributeError: the name does not exist.
    """
    module, _, attributes = path.partition(":")
    found = importlib.import_module(module)
    for attribute in attributes.split("."):
        found = getattr(found, attribute)
    return ".".join(attributes.split(".")[-2:])


def must_exist(path: str) -> None:
    """Check that a path exists in the repository.

    Raises:
        ValueError: it does not exist.
    """
    if not (ROOT / path).exists():
        raise ValueError(f"a diagram names {path}, which does not exist: correct docs/draw.py")


def subpackages_of(package: str) -> list[str]:
    """Return the dotted names of the subpackages directly below a package."""
    folder = ROOT.joinpath(*package.split("."))
    return sorted(f"{package}.{path.parent.name}" for path in folder.glob("*/__init__.py"))


def curation_calls() -> list[str]:
    """Return the functions that the curation step calls, in order, as far as the diagram shows them."""
    tree = ast.parse((ROOT / "components" / "curate" / "step.py").read_text())
    step = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "curate")
    calls = (node for node in ast.walk(step) if isinstance(node, ast.Call))
    names = [(node.lineno, node.func.id) for node in calls if isinstance(node.func, ast.Name)]
    return [name for _, name in sorted(names) if name in CURATION_TEXTS]


def stages() -> list[str]:
    """Return the names of the distillation stages in the order of their settings."""
    config = importlib.import_module("lpm_model.training.distill.config")
    fields = dataclasses.fields(config.Distillation)
    return [field.name for field in fields if str(getattr(field.type, "__name__", field.type)).endswith("Stage")]


def architecture() -> Drawing:
    """Draw the six steps with the folders between them, and the packages with their subpackages."""
    drawing = Drawing(1100, 806, "Architecture of LPM: six steps, four packages")
    drawing.text(30, 32, "Six steps and the folders between them", size_px=16, bold=True)
    _steps(drawing)
    drawing.text(30, 366, "Four packages: imports point down only", size_px=16, bold=True)
    _packages(drawing)
    return drawing


def _steps(drawing: Drawing) -> None:
    from components.runtime.steps import STEPS

    pitch, width, top = 150.0, 134.0, 50.0
    boxes, folders = {}, {}
    for index, step in enumerate(STEPS.values()):
        x = 30 + index * pitch
        boxes[step.verb] = drawing.box(x, top, width, 92, step.verb, STEP_TEXTS[step.verb], fill="blue", size_px=11)
        folders[step.folder] = drawing.box(x, top + 120, 76, 26, f"{step.folder}/", fill="amber", size_px=11)
        drawing.arrow((x + 38, top + 92), (x + 38, top + 120))
    for index, folder in enumerate(folders):
        inputs = {step.verb: list(step.inputs.values()) for step in STEPS.values()}
        readers = [(verb, names.index(folder)) for verb, names in inputs.items() if folder in names]
        level, start = top + 160 + index * 17, folders[folder].bottom[0] + (index % 2) * 6
        for verb, number in readers:
            x = boxes[verb].x + 90 + number * 15
            drawing.arrow((start, top + 146), (start, level), (x, level), (x, top + 92))
    serve = drawing.box(
        30 + 6 * pitch, top, width, 92, "serve", "live page, WebSocket, KServe endpoint", fill="green", size_px=11
    )
    release = folders["release"]
    drawing.arrow(release.right, (serve.x + 40, release.right[1]), (serve.x + 40, top + 92))
    drawing.text(30, top + 272, STEPS_NOTE, size_px=12, colour=MUTED)


def _packages(drawing: Drawing) -> None:
    from components.runtime.steps import STEPS

    left, width = 30.0, 1040.0
    tops = {"pipelines": 384.0, "components": 454.0, "serving": 604.0, "lpm_model": 700.0}
    heights = {"pipelines": 50.0, "components": 130.0, "serving": 76.0, "lpm_model": 84.0}
    bands = {}
    for package, top in tops.items():
        bands[package] = drawing.rectangle(left, top, width, heights[package], fill="grey")
        drawing.text(left + 12, top + 22, package, bold=True)
    drawing.text(left + 150, 414, "the lpm command, profiles (Hydra), Kubeflow pipelines: composition only", size_px=12)
    for index, verb in enumerate(STEPS):
        drawing.box(left + 150 + index * 147, 464, 139, 30, verb, fill="blue")
    shared = sorted(set(subpackages_of("components")) - {f"components.{verb}" for verb in STEPS}, key=LAYERS.index)
    _draw_subpackages(drawing, shared, left + 150, 518, 56, 874, fill="violet")
    for x in (left + 290, left + 580, left + 870):
        drawing.arrow((x, 494), (x, 518))
    drawing.text(left + 12, 496, "steps", size_px=12, colour=MUTED)
    drawing.text(left + 12, 544, "shared folders", size_px=12, colour=MUTED)
    drawing.text(left + 12, 560, "(imports go left)", size_px=12, colour=MUTED)
    _draw_subpackages(drawing, subpackages_of("serving"), left + 150, 612, 60, 440, fill="green")
    drawing.text(left + 606, 645, "protocol, session, duplex, service, engine, client, page", size_px=12)
    _draw_subpackages(drawing, subpackages_of("lpm_model"), left + 150, 708, 68, 590, fill="plain")
    drawing.text(left + 756, 738, "transformer, KV cache, flow, rollout,", size_px=12)
    drawing.text(left + 756, 755, "online state: no platform imports", size_px=12)
    order = list(tops)
    for upper, lower in zip(order, order[1:], strict=False):
        x = left + 75
        drawing.arrow((x, tops[upper] + heights[upper]), (x, tops[lower]))


def _draw_subpackages(
    drawing: Drawing, packages: list[str], x: float, y: float, height: float, width: float, *, fill: str
) -> None:
    """Draw subpackages next to each other, each with its text."""
    each = (width - 8 * (len(packages) - 1)) / len(packages)
    for index, package in enumerate(packages):
        name = package.rpartition(".")[2]
        drawing.box(x + index * (each + 8), y, each, height, name, PACKAGE_TEXTS[package], fill=fill, size_px=10.5)


def curate_passes() -> Drawing:
    """Draw the order of curation and the contents of its two passes over a source."""
    drawing = Drawing(1100, 600, "The two passes of curation")
    drawing.text(30, 32, "Curation of a corpus: components/curate/step.py, in order", size_px=16, bold=True)
    calls = curation_calls()
    pitch = 1040 / len(calls)
    boxes: dict[str, Box] = {}
    for index, call in enumerate(calls):
        fill = "blue" if call.endswith("_pass") else "plain"
        x = 30 + index * pitch
        boxes[call] = drawing.box(x, 48, pitch - 16, 84, call, CURATION_TEXTS[call], fill=fill, size_px=10.5)
    for before, after in zip(calls, calls[1:], strict=False):
        drawing.arrow(boxes[before].right, boxes[after].left)
    first = _pass(drawing, 30, "Analysis pass: measures the whole source", ANALYSIS_ROWS)
    second = _pass(drawing, 590, "Clip pass: cuts what training needs", CLIP_ROWS)
    for frame, call in ((first, "analysis_pass"), (second, "clip_pass")):
        x, y = boxes[call].bottom
        into = frame.x + 240
        drawing.arrow((x, y), (x, 158), (into, 158), (into, frame.y), dashed=True)
    cache = drawing.box(300, 470, 500, 96, "Between the passes", CACHE_TEXT, fill="amber", size_px=12)
    drawing.arrow((first.x + 200, first.y + first.height), (first.x + 200, cache.left[1]), cache.left)
    drawing.arrow(cache.right, (second.x + 280, cache.right[1]), (second.x + 280, second.y + second.height))
    return drawing


def _pass(drawing: Drawing, x: float, title: str, rows: Rows) -> Box:
    """Draw one pass, its rows from top to bottom, and return its frame."""
    frame = drawing.rectangle(x, 180, 480, 260, fill="grey")
    drawing.text(x + 16, 206, title, size_px=14, bold=True)
    for index, (name, text, path) in enumerate(rows):
        must_exist(path)
        y = 220 + index * 54
        drawing.box(x + 16, y, 220, 40, name, fill="blue")
        drawing.text(x + 246, y + 25, text, size_px=11, colour=MUTED)
        if index:
            drawing.arrow((x + 126, y - 14), (x + 126, y))
    return frame


def distillation() -> Drawing:
    """Draw the distillation stages from Base to Online LPM: what each trains, on which latents, with which loss."""
    names = stages()
    drawing = Drawing(1100, 466, "The stages of distillation")
    title = "From Base LPM to Online LPM: distill.STAGE.steps sets the length of a stage, 0 skips it"
    drawing.text(30, 32, title, size_px=16, bold=True)
    pitch, left = 192.0, 140.0
    for label, y in (("trains", 134), ("on", 186), ("loss", 278)):
        drawing.text(36, y, label, size_px=13, bold=True, colour=MUTED)
    drawing.text(36, 79, "Base LPM", size_px=13, bold=True)
    previous: Box | None = None
    for index, name in enumerate(names):
        trains, on, loss, fill = STAGE_TEXTS[name]
        x = left + index * pitch
        head = drawing.box(x, 56, pitch - 20, 36, f"{index + 1}  {name}", fill=fill, size_px=13)
        for y, height, text in ((112, 36, trains), (160, 84, on), (256, 52, loss)):
            drawing.box(x, y, pitch - 20, height, "", text, size_px=12)
        drawing.arrow(previous.right if previous else (left - 28, 74), head.left)
        previous = head
    name_of("lpm_model.training.distill.collapse_monitor:HeldOutRollout")
    width = len(names) * pitch - 20
    drawing.box(left, 326, width, 50, "Collapse monitor, in every stage", MONITOR_TEXT, fill="amber", size_px=12)
    drawing.text(36, 408, "roles", size_px=13, bold=True, colour=MUTED)
    for index, note in enumerate(ROLE_NOTES):
        drawing.text(left, 408 + index * 20, note, size_px=12)
    return drawing


def serving_pump() -> Drawing:
    """Draw the path of one chunk of a live conversation, from the microphone to the screen."""
    drawing = Drawing(1100, 566, "The serving pump: one chunk from microphone to screen")
    drawing.text(30, 32, "One chunk of a live conversation: who does what, on which thread", size_px=16, bold=True)
    for lane, y, height in (
        ("client", 48, 84),
        ("event loop", 142, 176),
        ("engine thread", 328, 100),
        ("voice", 438, 84),
    ):
        drawing.rectangle(30, y, 1040, height, fill="grey")
        drawing.text(42, y + 22, lane, bold=True, colour=MUTED)
    boxes = {}
    for key, (x, y, width), name, text, fill in PUMP:
        title = name_of(name) if ":" in name else name
        boxes[key] = drawing.box(x, y, width, 58, title, text, fill=fill, size_px=11)
    for start, end in (("page", "wire"), ("wire", "session"), ("pace", "chunk"), ("chunk", "step")):
        drawing.arrow(boxes[start].bottom, boxes[end].top)
    drawing.arrow(boxes["session"].right, boxes["chunk"].left)
    drawing.arrow(boxes["step"].right, boxes["drift"].left)
    drawing.arrow(boxes["drift"].top, boxes["cut"].bottom)
    drawing.arrow(boxes["cut"].right, (900, boxes["cut"].right[1]), (900, boxes["encode"].y))
    drawing.arrow((1000, boxes["encode"].y), (1000, 214))
    drawing.arrow(boxes["outbox"].top, boxes["screen"].bottom)
    drawing.arrow((290, 302), (290, 452), label="text", at=(308, 384))
    drawing.arrow((210, 452), (210, 302), label="voice", at=(188, 384))
    for index, line in enumerate(PUMP_NOTES):
        drawing.text(30, 540 + index * 17, line, size_px=12, colour=MUTED)
    return drawing


DIAGRAMS: dict[str, Callable[[], Drawing]] = {
    "architecture.svg": architecture,
    "curate-passes.svg": curate_passes,
    "distillation-stages.svg": distillation,
    "serving-pump.svg": serving_pump,
}
"""File name in docs/ -> function that draws it."""


def main() -> None:
    """Write all diagrams."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=DOCS, help="output folder")
    folder: Path = parser.parse_args().out
    for name, draw in DIAGRAMS.items():
        (folder / name).write_text(draw().svg())


if __name__ == "__main__":
    main()
