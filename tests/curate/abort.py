"""Functions that take their process down, in a module that imports nothing heavy: workers load it afresh."""

import os
import time
from typing import Any


def misbehave(job: str) -> dict[str, Any]:
    """Do what the job says."""
    if job == "crash":
        os.abort()
    if job == "sleep":
        time.sleep(60)
    if job == "hang":
        from components.runtime.guarded_worker import alarm

        with alarm(0.3):
            time.sleep(60)
    if job == "eat":
        eaten = bytearray(600 << 20)
        eaten[::4096] = b"x" * len(eaten[::4096])
        time.sleep(60)
    return {"job": job}


def lost(job: str, reason: str, detail: str) -> dict[str, Any]:
    """Outcome of a job whose process ended."""
    return {"job": job, "reason": reason, "detail": detail}
