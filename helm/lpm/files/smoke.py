"""`helm test`: one of the given addresses becomes ready, returns its metadata and streams.

With LPM_TOKEN set it reads the metadata, opens a conversation and waits for video; without it, only the WebSocket
upgrade is checked.
"""

import argparse
import json
import os
import sys
import time
import urllib.error
import urllib.request

from websockets.sync.client import ClientConnection, connect


def wait_ready(endpoints: list[str], timeout_s: float) -> str:
    """Return the first address that reports ready."""
    deadline = time.monotonic() + timeout_s
    last = "no address given"
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


def converse(socket: ClientConnection, token: str, timeout_s: float) -> str:
    """Open a conversation and return the evidence that the endpoint works: video, or a place in the queue."""
    socket.send(json.dumps({"type": "session.open", "token": token}))
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        frame = socket.recv(timeout=max(0.1, deadline - time.monotonic()))
        header = frame[4 : 4 + int.from_bytes(frame[:4], "little")] if isinstance(frame, bytes) else frame
        message = json.loads(header)
        if message["type"] in ("error", "closed"):
            raise SystemExit(f"the endpoint refused the conversation: {message}")
        if message["type"] == "session.queued":
            return f"all slots are taken, position {message['position']} in the queue"
        if message["type"] == "media.chunk":
            socket.send(json.dumps({"type": "session.close"}))
            return f"received video ({len(frame)} bytes in the first chunk)"
    raise SystemExit(f"no video within {timeout_s:.0f} s")


def main() -> int:
    """Run the checks; any failure ends with a message and exit code 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("endpoints", nargs="+", help="http://HOST:PORT, tried in turn")
    parser.add_argument("--timeout-s", type=float, default=120)
    parser.add_argument("--path", default="/v1/character/stream", help="WebSocket route")
    options = parser.parse_args()

    endpoint = wait_ready(options.endpoints, options.timeout_s)
    print(f"ready: {endpoint}")
    token = os.environ.get("LPM_TOKEN")
    if token:
        request = urllib.request.Request(f"{endpoint}/v2", headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                print(f"metadata: {json.load(answer)}")
        except urllib.error.HTTPError as error:
            raise SystemExit(f"metadata: {error}: does LPM_TOKEN match the server's?") from error
    with connect(f"ws{endpoint.removeprefix('http')}{options.path}", open_timeout=15) as socket:
        print(f"stream: {converse(socket, token, 30) if token else 'the WebSocket upgrades'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
