"""Shared by the commands: consoles, default folders, option types."""

from pathlib import Path

import click
from rich.console import Console

OUT = Console()
"""Console for results (stdout)."""
ERR = Console(stderr=True)
"""Console for errors (stderr)."""
FOLDER = click.Path(path_type=Path, file_okay=False)
"""Type of an option that names a folder."""
FILE = click.Path(path_type=Path, dir_okay=False)
"""Type of an option that names a file."""
WORKSPACE = Path("workspace")
"""Default folder of single steps and of DVC."""
CACHE = Path(".work")
"""Default folder of cached results."""
OVERRIDES = click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
"""Config overrides in Hydra's syntax."""
