"""`python -m serving --engine fake` or `python -m serving --model-dir DIR`: serve the live page on this machine."""

import argparse
import sys
from pathlib import Path

from serving.config import ServingConfig
from serving.server import serve_app


def main(arguments: list[str] | None = None) -> int:
    """Parse the command line and serve until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser(prog="python -m serving", description=__doc__)
    parser.add_argument("--model-dir", type=Path, help="folder of an Online LPM")
    parser.add_argument("--engine", choices=("lpm", "fake"), default="lpm", help="fake needs no model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on")
    parser.add_argument("--port", type=int, default=8000, help="0 picks a free one")
    parser.add_argument("--token", help="session token; random by default")
    parser.add_argument("--max-sessions", type=int, default=1, help="conversations that run at the same time")
    parser.add_argument("--float8", action="store_true", help="FP8 matmuls: faster on a GPU, slightly less exact")
    parser.add_argument(
        "--compile", action="store_true", help="compiled blocks and CUDA graphs: slower start, faster chunks"
    )
    given = parser.parse_args(arguments)
    config = ServingConfig(max_sessions=given.max_sessions, float8=given.float8, compile=given.compile)
    try:
        serve_app(
            given.model_dir,
            given.host,
            given.port,
            given.engine,
            given.token,
            config=config,
            on_ready=lambda url: print(f"open {url}", flush=True),
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
