"""MediaPipe's log lines are filtered from stderr; everything else passes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from components.curate.video.face_mesh import _filtered_stderr

ROOT = Path(__file__).parents[3]
FIND = """
import gc, sys, weakref, numpy as np
from components.curate.video.faces import FaceFinder
from tests.curate.corpus import as_frame

def find_faces():
    frame = as_frame(np.zeros((128, 128, 3), np.uint8))
    finder = FaceFinder(2)
    finder.find(frame)
    for count in (1, 2, 1):
        finder._track(count)
    return weakref.ref(frame)

seen = find_faces()
gc.collect()
print("done" if seen() is None else "the caller's frame is still referenced", file=sys.stderr)
"""


def test_networks_log_nothing_and_keep_no_reference_to_their_callers() -> None:
    found = subprocess.run([sys.executable, "-c", FIND], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "done\n")


def test_filtered_stderr_drops_only_log_lines(capfd: pytest.CaptureFixture[str]) -> None:
    lines = {
        "WARNING: All log messages before absl::InitializeLog() is called are written to STDERR\n": False,
        "W0000 00:00:1795892545.363997    6048 inference_feedback_manager.cc:114] Feedback manager\n": False,
        "INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\n": False,
        "E0000 00:00:1795892545.363997    6048 graph.cc:114] no such model\n": True,
        "WARNING components.curate: a.mp4 is skipped\n": True,
        "the end without a newline": True,
    }

    def crash() -> None:
        with _filtered_stderr():
            os.write(2, "".join(lines).encode())
            raise KeyError

    with pytest.raises(KeyError):
        crash()
    assert capfd.readouterr().err == "".join(line for line, passes in lines.items() if passes)
