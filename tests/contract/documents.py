"""What the READMEs and the pages of docs/ name: paths, links and shell commands."""

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
"""Suffixes of files that live in the tree: such a name is never an output."""
DATA = {".yaml", ".yml", ".json", ".jsonl", ".html", ".txt", ".parquet"}
"""Suffixes of files that live in the tree or are written by its code."""
OUTPUTS = {"runs", "workspace", "build", ".venv", ".work"}
"""Folders that commands write; git ignores them."""
FOREIGN = {"convert_to_onnx"}
"""Stems of files in repositories of others."""
BLOCK = re.compile(r"\n(?=[|*-] |\d+\. |\n)")
"""Where a paragraph, a row of a table or an item of a list ends."""
WORD = re.compile(r"[\w.*,{}-]+(?:/[\w.*,{}-]+)*/?")


def documents() -> list[Path]:
    """Return every Markdown file but the change log, which may name what is gone."""
    return [path for path in project_files() if path.suffix == ".md" and path.name != "CHANGELOG.md"]


def shell_lines(text: str) -> list[list[str]]:
    """Return every command of the shell blocks of a page, split into words, without comments."""
    blocks = [block for language, block in FENCE.findall(text) if language in SHELLS]
    lines = [line.removeprefix("$ ").strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [words for line in lines if line and (words := shlex.split(line, comments=True))]


def named_paths(text: str) -> Iterator[str]:
    """Yield the words of code spans and code blocks that look like a path, braces expanded, each once."""
    prose = FENCE.sub("", text)
    spans = [*CODE.findall(prose), *(block for _, block in FENCE.findall(text))]
    words = dict.fromkeys(word for span in spans for word in re.split(r"[\s()\[\]|\"']+", span))
    for word in words:
        cleaned = re.sub(r"^(?:--)?[\w.]+=", "", word).rstrip(".,;:")
        if WORD.fullmatch(cleaned) and ".." not in cleaned and _looks_like_a_path(cleaned):
            yield from _expand(cleaned)


def _looks_like_a_path(word: str) -> bool:
    placeholder = any(re.fullmatch(r"[A-Z_]{2,}", part) for part in word.split("/")) and "/" in word
    others = re.search(r"\.mp4\.", word)  # a user's video with its YAML file beside it
    return not placeholder and not others and ("/" in word or _suffix(word) in SOURCES | DATA)


def _suffix(word: str) -> str:
    return Path(word.rstrip("/")).suffix


def _expand(word: str) -> Iterator[str]:
    """Expand the braces of a shell word: `a/{b,c}` is `a/b` and `a/c`."""
    found = re.search(r"\{([^{}]*)\}", word)
    if not found:
        yield word
        return
    for choice in found[1].split(","):
        yield from _expand(word[: found.start()] + choice + word[found.end() :])


def places(word: str, page: Path) -> list[Path]:
    """Return where a path is: below the page's folder, a folder above it, or the root; globs may have many."""
    bases = [base for base in page.parents if base == ROOT or ROOT in base.parents]
    return [found for base in bases for found in base.glob(word.rstrip("/"))]


def exists(word: str, page: Path, folders: Collection[Path] = ()) -> bool:
    """Whether a path is there.

    Args:
        word: the path as written.
        page: what names it.
        folders: folders named in the same paragraph, by themselves or with a file, in which a bare name may be as well.
    """
    if places(word, page) or any((folder / word).exists() for folder in folders):
        return True
    return "/" not in word and len(list(page.parent.glob(f"*/{word}"))) > 1  # a convention, such as step.py


@cache
def literals() -> frozenset[str]:
    """Return the words of all string literals of the sources: names of files that code reads and writes."""
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
    """Whether a path is an output: below a folder that commands write, or a name that a string of the code holds."""
    parts = word.rstrip("/").split("/")
    return parts[0] in OUTPUTS or (_suffix(word) not in SOURCES and all(part in literals() for part in parts))


def must_exist(word: str, page: Path) -> bool:
    """Whether a word is a claim about the tree, and not a host, an image, a media type or a user's file."""
    if Path(word).stem in FOREIGN:
        return False
    if _suffix(word) in SOURCES | DATA or word.endswith("/"):
        return True
    return "/" in word and exists(word.split("/")[0], page)


def broken_paths(text: str, page: Path) -> list[str]:
    """Return the paths that a page's text names and that are nowhere."""
    broken = []
    for block in (*BLOCK.split(FENCE.sub("", text)), *_fences(text)):
        words = list(named_paths(block))
        named = (place for word in words if "/" in word for place in places(word, page))
        folders = {place if place.is_dir() else place.parent for place in named}
        broken += [
            word
            for word in words
            if must_exist(word, page) and not exists(word, page, folders) and not is_named_by_code(word)
        ]
    return list(dict.fromkeys(broken))


def _fences(text: str) -> list[str]:
    """Return the code blocks of a page, with their fences."""
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
