"""`helm test`: one of the given addresses must become ready, describe its model and upgrade to a WebSocket."""

import argparse
import json
import sys
import time
import urllib.error
import urllib.request

from websockets.sync.client import connect


def wait_ready(endpoints: list[str], timeout_s: float) -> str:
    """Return the first address that says it is ready."""
    deadline = time.monotonic() + timeout_s
    last = "no address was given"
    while time.monotonic() < deadline:
        for endpoint in endpoints:
            try:
                with urllib.request.urlopen(f"{endpoint}/v2/health/ready", timeout=5) as answer:
                    body = json.load(answer)
                if body.get("ready") is True:
                    return endpoint
                last = f"{endpoint} answered {body}"
            except (OSError, ValueError) as error:
                last = f"{endpoint}: {error}"
        time.sleep(1)
    raise SystemExit(f"not ready after {timeout_s:.0f} s: {last}")


def main() -> int:
    """Run the checks; any failure ends with a message and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoints", nargs="+", help="http://HOST:PORT, tried in turn")
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--path", default="/v1/character/stream", help="WebSocket route")
    options = parser.parse_args()

    endpoint = wait_ready(options.endpoints, options.timeout_s)
    print(f"ready: {endpoint}")
    with urllib.request.urlopen(f"{endpoint}/v2", timeout=10) as answer:
        print(f"metadata: {json.load(answer)}")
    with connect(f"ws{endpoint.removeprefix('http')}{options.path}", open_timeout=15) as socket:
        socket.ping().wait(10)
    print(f"websocket: {options.path} upgrades")
    return 0


if __name__ == "__main__":
    sys.exit(main())
