"""Extract and check the paths, links and shell commands in READMEs and docs/."""

import re
import shlex
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path

from tests.contract.project import PACKAGES, ROOT, project_files

FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
CODE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SHELLS = {"bash", "sh", "console", "shell"}
SOURCES = {".py", ".md", ".ts", ".css", ".toml", ".tpl", ".sh", ".Dockerfile", ".svg"}
"""Suffixes of source files: such a name is never an output."""
DATA = {".yaml", ".yml", ".json", ".jsonl", ".html", ".txt", ".parquet"}
"""Suffixes of files that are in the repository or written by its code."""
OUTPUTS = {"runs", "workspace", "build", ".venv", ".work"}
"""Folders that commands write to; git ignores them."""
FOREIGN = {"convert_to_onnx"}
"""Stems of files in other repositories."""
BLOCK = re.compile(r"\n(?=[|*-] |\d+\. |\n)")
"""Boundary between paragraphs, table rows and list items."""
WORD = re.compile(r"[\w.*,{}-]+(?:/[\w.*,{}-]+)*/?")


def documents() -> list[Path]:
    """Return every Markdown file except the change log, which may name removed files."""
    return [path for path in project_files() if path.suffix == ".md" and path.name != "CHANGELOG.md"]


def shell_lines(text: str) -> list[list[str]]:
    """Return the commands in a page's shell blocks, each split into words, without comments."""
    blocks = [block for language, block in FENCE.findall(text) if language in SHELLS]
    lines = [line.removeprefix("$ ").strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if line and (words := shlex.split(line, comments=True))]


def named_paths(text: str) -> Iterator[str]:
    """Yield the distinct words in code spans and code blocks that look like a path, with braces expanded."""
    prose = FENCE.sub("", text)
    spans = [*CODE.findall(prose), *(block for _, block in FENCE.findall(text))]
    words = dict.fromkeys(word for span in spans for word in re.split(r"[\s()\[\]|\"']+", span))
    for word in words:
        cleaned = re.sub(r"^(?:--)?[\w.]+=", "", word).rstrip(".,;:")
        if WORD.fullmatch(cleaned) and ".." not in cleaned and _looks_like_a_path(cleaned):
            yield from _expand(cleaned)


def _looks_like_a_path(word: str) -> bool:
    placeholder = any(re.fullmatch(r"[A-Z_]{2,}", part) for part in word.split("/")) and "/" in word
    others = re.search(r"\.mp4\.", word)  # the YAML file next to a user's video
    return not placeholder and not others and ("/" in word or _suffix(word) in SOURCES | DATA)


def _suffix(word: str) -> str:
    return Path(word.rstrip("/")).suffix


def _expand(word: str) -> Iterator[str]:
    """Expand the braces of a shell word: `a/{b,c}` yields `a/b` and `a/c`."""
    found = re.search(r"\{([^{}]*)\}", word)
    if not found:
        yield word
        return
    for choice in found[1].split(","):
        yield from _expand(word[: found.start()] + choice + word[found.end() :])


def locations(word: str, page: Path) -> list[Path]:
    """Return the files that a path matches, relative to the page's folder or any parent up to the root."""
    bases = [base for base in page.parents if base == ROOT or ROOT in base.parents]
    return [found for base in bases for found in base.glob(word.rstrip("/"))]


def exists(word: str, page: Path, folders: Collection[Path] = ()) -> bool:
    """Return whether a path exists.

    Args:
        word: the path as written.
        page: the page that contains it.
        folders: folders mentioned in the same paragraph, in which a bare file name may be located too.
    """
    if locations(word, page) or any((folder / word).exists() for folder in folders):
        return True
    return "/" not in word and len(list(page.parent.glob(f"*/{word}"))) > 1  # a convention, such as step.py


@cache
def string_literals() -> frozenset[str]:
    """Return the words in all string literals of the sources, which include the names of files that code writes."""
    kinds = {".py", ".ts", ".yaml", ".tpl"}
    tops = {*PACKAGES, "helm", "infra", "dvc.yaml"}
    texts = (p.read_text() for p in project_files() if p.suffix in kinds and p.relative_to(ROOT).parts[0] in tops)
    return frozenset(
        word
        for text in texts
        for quoted in re.findall(r"[\"'`]([^\"'`\n]+)[\"'`]", text)
        for word in (quoted, *re.split(r"[\s/]+", quoted))
    )


def is_named_by_code(word: str) -> bool:
    """Return whether a path is an output: in a folder that commands write to, or named in a string literal."""
    parts = word.rstrip("/").split("/")
    return parts[0] in OUTPUTS or (_suffix(word) not in SOURCES and all(part in string_literals() for part in parts))


def must_exist(word: str, page: Path) -> bool:
    """Return whether a word is a path in the repository, not a host, an image, a media type or a user's file."""
    if Path(word).stem in FOREIGN:
        return False
    if _suffix(word) in SOURCES | DATA or word.endswith("/"):
        return True
    return "/" in word and exists(word.split("/")[0], page)


def broken_paths(text: str, page: Path) -> list[str]:
    """Return the paths in a page's text that do not exist."""
    broken = []
    for block in (*BLOCK.split(FENCE.sub("", text)), *_fences(text)):
        words = list(named_paths(block))
        named = (path for word in words if "/" in word for path in locations(word, page))
        folders = {path if path.is_dir() else path.parent for path in named}
        broken += [
            word
            for word in words
            if must_exist(word, page) and not exists(word, page, folders) and not is_named_by_code(word)
        ]
    return list(dict.fromkeys(broken))


def _fences(text: str) -> list[str]:
    """Return the code blocks of a page, including their fences."""
    return [found[0] for found in FENCE.finditer(text)]


def broken_links(text: str, page: Path) -> list[str]:
    """Return the relative links of a page's text whose file or heading is missing."""
    broken = []
    for link in LINK.findall(FENCE.sub("", text)):
        target, _, heading = link.partition("#")
        if "://" in link or link.startswith("mailto:"):
            continue
        path = page.parent / target if target else page
        if not path.exists() or (heading and heading not in headings(path.read_text() if target else text)):
            broken.append(link)
    return broken


def headings(text: str) -> set[str]:
    """Return the anchors of a page's headings, as the hosting page renders them."""
    titles = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
