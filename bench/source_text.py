"""Source text: size, Protocols and dialect of a tree, from its tracked files alone.

Rule: a figure is a count or a rate that anybody can repeat with the definitions in this file.

- Source is every tracked `*.py` outside `tests/`, `bench/` and `docs/`.
- A document is every tracked `*.md` but Chinese pages and the license, without code blocks, code spans and the targets of links.
- Prose of the source is its docstrings and comments, without code spans and without directives to tools (`noqa`, `fmt`, `type`).
- A rate is a count for 1,000 words. A word begins with a letter.
- A free clause is "what" before a form of be, have or do, or before a modal verb ("what is sent"). A question is none.
- A class implements a Protocol if it, with its bases in the source, defines every name of the Protocol. A class is found by
  its name and the name of its module, so the count of Protocols with one implementation is an estimate. It misses a function, a
  module and a class of a library as implementation.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

MAX_LINES = 400
MAX_FUNCTION_LINES = 60
ASIDE = {"tests", "bench", "docs"}
VERBS = (
    "is|was|are|were|be|been|has|have|had|does|do|did|can|cannot|could|may|might|must|shall|should|will|would|"
    "isn['’]t|wasn['’]t|can['’]t"
)
DIALECT = {
    'free "what is …" clauses': rf"\bwhat\s+(?:{VERBS})\b(?!(?:[^.?!|\n]|\n(?!\s*\n))*\?)",
    "retry, backoff": r"\b(?:retr(?:y|ies|ied|ying)|backoff)\b",
    "seal": r"\b(?:un)?seal(?:s|ed|ing)?\b",
    "anew": r"\banew\b",
    "of ours": r"\bof ours\b",
    "stands": r"\bstands\b",
    "lies": r"\blies\b",
    "told": r"\btold\b",
    "said": r"\bsaid\b",
}
WORD = re.compile(r"\b[A-Za-z][A-Za-z0-9'’-]*")
CODE_BLOCK = re.compile(r"^( *)(```+|~~~+).*?^\1\2[`~]*$", re.DOTALL | re.MULTILINE)
CODE_SPAN = re.compile(r"(`+)[^`]+\1")
LINK_TARGET = re.compile(r"(?<=\])\([^)\s]*\)")
DIRECTIVE = re.compile(r"(?:^|# *)(?:noqa|fmt:|type: ignore|pragma).*|^!.*")
QUESTION_HEADER = re.compile(r"(?:what|who|how|why|where)\b", re.IGNORECASE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

ClassKey = tuple[str, str]


def figures(tree: Path) -> dict[str, float]:
    """Every figure of a tree by its name."""
    tracked = [name for name in files(tree) if (tree / name).is_file()]
    sources = {name: read(tree / name) for name in tracked if name.endswith(".py") and top(name) not in ASIDE}
    tests = [read(tree / name) for name in tracked if name.endswith(".py") and top(name) == "tests"]
    documents = [read(tree / name) for name in tracked if name.endswith(".md") and not name.endswith(".zh-CN.md")]
    modules = {name: ast.parse(text) for name, text in sources.items()}
    prose = [paragraph for name, module in modules.items() for paragraph in explanations(module, sources[name])]
    return (
        sizes(sources, modules, tests)
        | protocols(modules)
        | {"module headers with What/Who/How/Why/Where, %": question_headers(list(modules.values()))}
        | {f"documents: {name}": figure for name, figure in rates([plain(text) for text in documents]).items()}
        | {f"docstrings, comments: {name}": figure for name, figure in rates([CODE_SPAN.sub("", p) for p in prose]).items()}
    )


def files(tree: Path) -> list[str]:
    """The files that git tracks in a tree. Raises CalledProcessError outside a checkout."""
    listed = subprocess.run(["git", "-C", tree, "ls-files", "-z"], capture_output=True, text=True, check=True).stdout
    return sorted(filter(None, listed.split("\0")))


def top(name: str) -> str:
    """The top-level folder of a file."""
    return name.partition("/")[0]


def read(path: Path) -> str:
    """The text of a file."""
    return path.read_text(encoding="utf-8")


def sizes(sources: dict[str, str], modules: dict[str, ast.Module], tests: Sequence[str]) -> dict[str, float]:
    """Lines, files, and the files and functions over the limits."""
    lines = {name: len(text.splitlines()) for name, text in sources.items()}
    functions = [node for module in modules.values() for node in ast.walk(module) if isinstance(node, FUNCTIONS)]
    return {
        "source lines": sum(lines.values()),
        "source files": len(lines),
        f"source files over {MAX_LINES} lines": sum(count > MAX_LINES for count in lines.values()),
        f"functions over {MAX_FUNCTION_LINES} lines": sum(
            (node.end_lineno or node.lineno) - node.lineno + 1 > MAX_FUNCTION_LINES for node in functions
        ),
        "test lines": sum(len(text.splitlines()) for text in tests),
        "test files": len(tests),
    }


def protocols(modules: dict[str, ast.Module]) -> dict[str, float]:
    """The number of Protocols, and of those with one implementation in the source."""
    classes = {
        (PurePath(name).stem, node.name): node
        for name, module in modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    }
    declared = [key for key in classes if any(name == "Protocol" for _, name in bases(key, classes))]
    offered = [members(key, classes) for key in classes.keys() - declared]
    required = [members(key, classes) for key in declared]
    found = Counter(sum(names <= one for one in offered) for names in required)
    return {"Protocols": len(declared), "Protocols with one implementation": found[1]}


def bases(key: ClassKey, classes: dict[ClassKey, ast.ClassDef]) -> list[ClassKey]:
    """The bases of a class, each as a module and a name."""
    found = []
    for base in classes[key].bases:
        plain_base = base.value if isinstance(base, ast.Subscript) else base
        if isinstance(plain_base, ast.Attribute) and isinstance(plain_base.value, ast.Name):
            found.append((plain_base.value.id, plain_base.attr))
        elif isinstance(plain_base, ast.Name):
            found.append((key[0], plain_base.id))
    return found


def members(key: ClassKey, classes: dict[ClassKey, ast.ClassDef]) -> set[str]:
    """The public names that a class and its bases define: methods, fields, and attributes that its methods assign."""
    names = set()
    for node in ast.walk(classes[key]):
        if isinstance(node, FUNCTIONS):
            names.add(node.name)
        elif isinstance(node, ast.AnnAssign | ast.Assign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                names |= {part.id if isinstance(part, ast.Name) else part.attr for part in assigned(target)}
    inherited = [members(base, classes) for base in bases(key, classes) if base in classes and base != key]
    return {name for name in names.union(*inherited) if not name.startswith("_") or name == "__call__"}


def assigned(target: ast.expr) -> Iterator[ast.Name | ast.Attribute]:
    """The names that an assignment gives a value; an attribute only of `self`."""
    for part in target.elts if isinstance(target, ast.Tuple) else [target]:
        if isinstance(part, ast.Name) or (
            isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name) and part.value.id == "self"
        ):
            yield part


def question_headers(modules: Sequence[ast.Module]) -> float:
    """The share of module headers that begin with a question word, in %."""
    headers = [header for module in modules if (header := ast.get_docstring(module))]
    return 100 * sum(bool(QUESTION_HEADER.match(header)) for header in headers) / len(headers)


def plain(document: str) -> str:
    """The prose of a document."""
    return LINK_TARGET.sub("", CODE_SPAN.sub("", CODE_BLOCK.sub("", document)))


def explanations(module: ast.Module, text: str) -> Iterator[str]:
    """The docstrings and comments of a module."""
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
    lines: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            lines[token.start[0]] = DIRECTIVE.sub("", token.string.lstrip("# "))
    # A comment of several lines is one paragraph.
    yield "\n".join(("" if number - 1 in lines else "\n") + line for number, line in lines.items())


def rates(prose: Sequence[str]) -> dict[str, float]:
    """Words in total, and the rates per 1,000 words."""
    words = sum(len(WORD.findall(text)) for text in prose)
    counts = {name: sum(len(re.findall(form, text, re.IGNORECASE)) for text in prose) for name, form in DIALECT.items()}
    return {"words": words} | {f"{name}, per 1,000 words": 1000 * count / words for name, count in counts.items()}
