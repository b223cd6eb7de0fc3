"""Frame rate and latency of a real server and client over loopback, full duplex, with H.264 and decoding.

`python -m tests.benchmarks.live [--engine lpm|fake] [--model-dir DIR] [--seconds 120] [--json]`. The server is a
separate process. The user streams speech-like audio all the time; the character speaks four seconds in ten.

- sustained_fps: decoded frames per second of wall time between the first and the last chunk.
- compute_seconds_per_video_second: mean time of model, decoder and H.264 encoder per second of video.
- first_frame_ms: from session.open to the first decoded frame, with a warm engine.
- reaction_p95_ms: from sending a packet of user audio to the first decoded frame whose model consumed it.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path

import numpy as np

from lpm_model.config import AUDIO_RATE, SAMPLES_PER_FRAME
from serving.client import CharacterClient, connect

PACKET = 960


def babble(seconds: float, seed: int) -> np.ndarray:
    """Speech-like noise, int16: syllables at 4 Hz with pauses."""
    rng = np.random.default_rng(seed)
    time_s = np.arange(round(seconds * AUDIO_RATE)) / AUDIO_RATE
    envelope = np.clip(np.sin(2 * np.pi * 4 * time_s), 0, 1) * (np.sin(2 * np.pi * 0.21 * time_s + seed) > -0.3)
    return (envelope * rng.normal(0, 3500, time_s.size)).clip(-32768, 32767).astype(np.int16)


async def start_server(engine: str, model_dir: Path | None) -> tuple[asyncio.subprocess.Process, str, str]:
    """Start a server process; return it, its address and its token."""
    command = [sys.executable, "-m", "serving", "--engine", engine, "--port", "0"]
    command += ["--model-dir", str(model_dir)] if model_dir else []
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    if process.stdout is None:
        raise RuntimeError("the server has no standard output")
    line = (await process.stdout.readline()).decode().strip()
    if not line.startswith("open "):
        raise RuntimeError(f"the server did not start: {line or 'see the messages above'}")
    address, _, token = line.removeprefix("open ").partition("/#token=")
    return process, address, token


async def user_side(client: CharacterClient, seconds: float) -> list[tuple[int, float]]:
    """Stream the user's voice in real time; return (samples sent, time) after each packet."""
    voice, begin = babble(seconds, 1), time.perf_counter()
    sent: list[tuple[int, float]] = []
    for start in range(0, voice.size - PACKET + 1, PACKET):
        await asyncio.sleep(max(0.0, begin + start / AUDIO_RATE - time.perf_counter()))
        await client.append_user(voice[start : start + PACKET])
        sent.append((start + PACKET, time.perf_counter()))
    return sent


async def character_side(client: CharacterClient, seconds: float) -> None:
    """Send a segment of four seconds every ten seconds."""
    for number in range(max(1, round(seconds / 10))):
        await client.append_character(f"turn-{number}", babble(min(4.0, seconds / 2), 7 + number))
        await client.end_segment(f"turn-{number}")
        await asyncio.sleep(10.0)


async def talk(url: str, token: str, seconds: float) -> dict[str, float]:
    """Run the conversation and measure it."""
    opened = time.perf_counter()
    async with connect(url, token, keep_frames=False) as client:
        await client.wait(lambda: bool(client.chunks), timeout_s=60)
        first_frame = client.chunks[0].decoded_s - opened
        speaking = asyncio.create_task(character_side(client, seconds))
        sent = await user_side(client, seconds)
        speaking.cancel()
        chunks = list(client.chunks)
        await client.close()
    consumed = [(chunk.message.user_samples, chunk.decoded_s) for chunk in chunks]
    reactions, at = [], 0
    for samples, when in sent:
        while at < len(consumed) and consumed[at][0] < samples:
            at += 1
        if at < len(consumed):
            reactions.append(consumed[at][1] - when)
    span = chunks[-1].received_s - chunks[0].received_s
    frames = sum(len(chunk.pts) for chunk in chunks[1:])
    video_s = sum(len(chunk.pts) for chunk in chunks) * SAMPLES_PER_FRAME / AUDIO_RATE
    return {
        "sustained_fps": round(frames / span, 2),
        "compute_seconds_per_video_second": round(sum(c.message.compute_ms for c in chunks) / 1000 / video_s, 4),
        "first_frame_ms": round(first_frame * 1000, 1),
        "reaction_p95_ms": round(float(np.percentile(reactions, 95)) * 1000, 1),
        "duration_s": round(span, 2),
    }


async def measure(engine: str, model_dir: Path | None, seconds: float) -> dict[str, float]:
    """Start a server, run the conversation, stop the server."""
    process, url, token = await start_server(engine, model_dir)
    try:
        return await talk(url, token, seconds)
    finally:
        process.terminate()
        await process.wait()


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.live", description=__doc__)
    parser.add_argument("--engine", choices=("lpm", "fake"), help="lpm with a model folder, fake without")
    parser.add_argument("--model-dir", type=Path, help="folder of an Online LPM, such as runs/latest/release")
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line")
    given = parser.parse_args(arguments)
    engine = given.engine or ("lpm" if given.model_dir else "fake")
    figures = asyncio.run(measure(engine, given.model_dir, given.seconds))
    for name, value in figures.items():
        print(f"{name:36} {value:10}")
    if given.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
