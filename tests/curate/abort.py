"""Jobs that end their process, in a module without heavy imports, as every new worker loads it."""

import os
import time
from typing import Any


def misbehave(job: str) -> dict[str, Any]:
    """Crash, sleep, hang or use memory, as the job requests."""
    if job == "crash":
        os.abort()
    if job == "sleep":
        time.sleep(60)
    if job == "hang":
        from components.runtime.guarded_worker import alarm

        with alarm(0.3):
            time.sleep(60)
    if job == "eat":
        memory = bytearray(600 << 20)
        memory[::4096] = b"x" * len(memory[::4096])
        time.sleep(60)
    return {"job": job}


def lost(job: str, reason: str, detail: str) -> dict[str, Any]:
    """Outcome of a job whose process ended."""
    return {"job": job, "reason": reason, "detail": detail}
