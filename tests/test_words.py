"""Words that documentation, messages and names avoid, because the field has plainer ones."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (
    "evalmode",
    "training",
    "serving",
    "protos",
    "docs",
    "tests",
    "benchmarks",
    "docker",
    "deploy",
    "examples",
    ".ci",
)
SUFFIXES = {
    ".css",
    ".html",
    ".j2",
    ".md",
    ".mjs",
    ".proto",
    ".py",
    ".sh",
    ".toml",
    ".tpl",
    ".txt",
    ".yaml",
    ".yml",
    ".Dockerfile",
    "",
}
LEFT_OUT = ("docs/decisions/", "CHANGELOG.md", "tests/test_words.py", "tests/conformance/results/")

# Pattern -> what to write instead. A pattern matches whole words; an underscore ends a word, too.
WORDS = {
    r"told|retold": "predicted, reported, requested, passed, header, message: the thing itself",
    r"ours": "a noun: the server, evalmode, classifier",
    r"theirs": "a noun: the client, open_inference, the library",
    r"(?:is|are|be) no numbers?": "NaN or infinite, non-finite",
    r"numbers? that (?:is|are) none": "NaN or infinite, non-finite",
    r"[Ww]ent away": "disconnected, cancelled",
    r"(?:is|are|was|were) gone": "disconnected, cancelled, closed, removed",
    r"caller'?s? (?:is )?gone": "the call was cancelled",
    r"cannot be told|could not be told": "unknown, not applicable",
    r"(?:not )?served here": "supported, unsupported",
    r"(?<!TOO_)(?:LEAST|MOST|MUCH|FEWEST)": "MIN_, MAX_ or a name that ends in _THRESHOLD",
    r"(?:an? )?(?:requests?|calls?|connections?|streams?) too many": "raises X if the queue is full",
    r"beside one (?:a|per|for each) slot": "in addition to one per slot",
    r"(?:has|have) (?:its|their) say": "decides, applies",
    r"hand(?:s|ed|ing)? out": "returns, assigns, allocates",
    r"let(?:s|ting)? go(?: of)?": "releases, frees, closes",
    r"(?:comes?|came) of": "the result, the outcome",
    r"[Ww]hoever": "a noun: the client, the caller, users who",
    r"[Aa]nybody'?s": "a noun: any user's, a third-party",
    r"[Ww]hat (?:is|was) \w+ (?:is|was|are)": "a noun as the subject of the sentence",
    r"[;,] else none": "an Args or Returns entry",
}
PATTERNS = {re.compile(rf"(?<![A-Za-z])(?:{pattern})(?![A-Za-z])"): advice for pattern, advice in WORDS.items()}


def list_files() -> list[Path]:
    """Every file whose text a person reads, without generated code."""
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    found += [*ROOT.glob("*.md"), ROOT / "Makefile", ROOT / "pyproject.toml"]
    return [path for path in found if path.is_file() and is_read(path)]


def is_read(path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return not name.startswith(LEFT_OUT) and "_pb2" not in name and "__pycache__" not in name


def find_words(text: str) -> Iterator[tuple[int, str, str]]:
    """The line, the word and the advice of every match; a phrase may continue on the next line."""
    for pattern, advice in PATTERNS.items():
        spaced = re.compile(pattern.pattern.replace(" ", r"[\s#]+"))
        for match in spaced.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, " ".join(match[0].split()), advice


@pytest.mark.parametrize("path", list_files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words_are_used(path: Path) -> None:
    lines = [
        f"{path.relative_to(ROOT)}:{line}: {word!r}: write {advice}"
        for line, word, advice in sorted(find_words(path.read_text("utf-8")))
    ]
    assert not lines, "\n" + "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("as it was told", ["told"]),
        ("told_labels = ours", ["told", "ours"]),
        ("a loss that is no\n    # number", ["is no # number"]),
        ("MOST_BYTES and AT_MOST_5", ["MOST", "MOST"]),
        ("the client whose\nsocket is gone", ["is gone"]),
        ("What is refused is counted", ["What is refused is"]),
        ("Whoever comes, untold hours, almost, MOSTLY, retells", ["Whoever"]),
    ],
)
def test_words_are_found_at_their_boundaries(text: str, words: list[str]) -> None:
    assert sorted(word for _, word, _ in find_words(text)) == sorted(words)
