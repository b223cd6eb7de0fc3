"""Check a commit message, as the commit-msg hook does: `python -m tests.contract.commit_message FILE`."""

import re
import sys
from pathlib import Path

AREAS = (
    "model",
    "train",
    "distill",
    "dataset",
    "runtime",
    "performer",
    "ingest",
    "curate",
    "evaluate",
    "deploy",
    "serving",
    "pipelines",
    "helm",
    "infra",
    "docs",
    "tests",
    "house",
)
"""What a commit changes: a package or folder, or `house` for repository-wide changes."""
SUBJECT = re.compile(rf"(?:{'|'.join(AREAS)}): \S.{{0,90}}")
EXEMPT = ("Merge ", "Revert ", "fixup! ", "squash! ")


def error_in_message(message: str) -> str:
    """Return the error in a commit message, or an empty string."""
    lines = [line for line in message.splitlines() if not line.startswith("#")]
    subject = lines[0] if lines else ""
    if subject.startswith(EXEMPT) or (SUBJECT.fullmatch(subject) and (len(lines) < 2 or not lines[1])):
        return ""
    return (
        f"commit message {subject!r}: write `AREA: what changes`, at most 90 characters after the colon, then an empty "
        f"line before any body; AREA is one of {', '.join(AREAS)}"
    )


if __name__ == "__main__":
    sys.exit(error_in_message(Path(sys.argv[1]).read_text()) or 0)
