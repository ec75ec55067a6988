"""Project rules that a tool can check: generated documents, import contracts, locks, sizes, headers, links.

Rule: every rule holds for every file of the repository, tracked or not yet added. Each exception states its reason.
"""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bench import source_text
from docs import generate
from tests import ast_helpers, pages

ROOT = Path(__file__).parent.parent.parent
ROOMS = (
    "machine",
    "handlers",
    "worker",
    "events",
    "store",
    "bus",
    "media",
    "tencent",
    "webhook",
    "web",
    "config",
    "cli",
    "simulator",
    "assembly",
)
LOCKS = ("requirements.lock", "bootstrap.lock", "runtime.lock")
MOST_LINES = 400
VAGUE_NAMES = {
    "utils", "util", "common", "core", "helpers", "helper", "manager", "base", "misc", "stuff", "things", "tools", "lib",
    "doing", "saying", "holding", "given", "door", "shapes", "answers", "values", "desk", "eyes", "inside", "typed",
}  # fmt: skip
# Protocols with one implementation, and why each stays.
PROTOCOLS_WITH_A_REASON = {
    "web/dependencies.py SessionQueries": "web may not import store; queries are behavior, not a value that both could share",
    "web/dependencies.py AttentionQueries": "the same",
    "web/dependencies.py OverviewQueries": "the same",
    "web/dependencies.py LiveView": "web may not import media; a view is a process with its pipes, not a value",
    "web/dependencies.py Operations": "the same",
    "machine/ports.py Snapshot": "the store finds its readings by name, in one method; the dictionary store has one for each",
}
FORBIDDEN = {
    "an unfinished note": r"\b(?:TODO|FIXME|XXX|HACK)\b",
    "a path of some machine": r"(?<![\w.])/(?:root|Users|work|mnt)/[a-z]|/home/(?!op\b)[a-z]",
    "a package registry": r"\b(?:pypi|pythonhosted|artifactory|nexus|devpi)\b[\w-]*\.|(?i:index[-_]url)[\"'\s=:]+\w+://|\bmirrors?\.[a-z]",
}
# Texts that a rule must find, and those that only look like it.
FOUND = {
    "an unfinished note": (["# TODO: later"], ["TODOS"]),
    "a path of some machine": (["/home/someone/x", "cd /root/y"], ["/home/op/recorder", "docs/work/x"]),
    "a package registry": (
        ["https://pypi.example.org", "--index-url=http://10.0.0.1/", "PIP_INDEX_URL: http://h/", "--extra-index-url https://h/"],
        ["uv pip compile --no-emit-index-url --generate-hashes"],
    ),
}
MARKDOWN_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
TEST_NAME = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")
MARKDOWN_NAME = re.compile(r"(?<![\w/.-])((?:docs/)?[A-Za-z][A-Za-z0-9-]*(?:\.zh-CN)?\.md)\b")


def files(suffix: str = "") -> list[Path]:
    """Every file of the repository: what git tracks, and what it would if it were added now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    return [ROOT / name for name in sorted(set(listed)) if name.endswith(suffix) and (ROOT / name).is_file()]


def written_by_hand(path: Path) -> bool:
    """Whether a person writes this module."""
    return path.suffix == ".py" and "versions" not in path.parts


def name(path: Path) -> str:
    """The path as documents write it."""
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("document", sorted(generate.documents()))
def test_generated_documents_are_up_to_date(document: str) -> None:
    """The committed document equals the generated one; `make docs` writes it."""
    assert (ROOT / "docs" / document).read_text(encoding="utf-8") == generate.documents()[document]


def test_files_that_the_pages_have_saved_are_no_part_of_the_project() -> None:
    """git ignores each example that a page tells the reader to save here, so `make check` does not judge it."""
    documents = [path for path in files(".md") if path.parent in (ROOT, ROOT / "docs")]
    saved = {block.file for path in documents for block in pages.blocks(path) if block.file and not block.file.startswith("/")}
    assert len(saved) > 3
    done = subprocess.run(["git", "check-ignore", *saved], cwd=ROOT, capture_output=True, text=True, check=False)
    assert set(done.stdout.split()) == saved


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """The import contracts of pyproject.toml, checked in `folder`."""
    tool = Path(sys.executable).with_name("lint-imports")
    return subprocess.run([tool, "--no-cache"], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


def test_import_contracts_hold() -> None:
    """No package imports a forbidden one."""
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_a_broken_import_contract_is_noticed(tmp_path: Path) -> None:
    """One import in the wrong direction fails the check, which names it."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "media" / "flv.py").open("a", encoding="utf-8") as module:
        module.write("\nfrom store import rows as rows\n")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "media.flv -> store.rows" in done.stdout


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str) -> None:
    """No file contains a forbidden text."""
    found = []
    for path in files():
        text = path.read_text(encoding="utf-8", errors="replace")
        # This file contains the patterns; the license and the locks are not our texts.
        if path != Path(__file__) and path.name not in ("LICENSE", *LOCKS):
            found += [f"{name(path)}: {hit.group()}" for hit in re.finditer(FORBIDDEN[what], text)]
    assert found == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_forbidden_text_is_noticed(what: str) -> None:
    """The rule finds what it forbids, and nothing that only looks like it."""
    bad, good = FOUND[what]
    assert [text for text in bad if not re.search(FORBIDDEN[what], text)] == []
    assert [text for text in good if re.search(FORBIDDEN[what], text)] == []


@pytest.mark.parametrize("lock", LOCKS)
def test_every_locked_package_has_a_version_and_a_hash(lock: str) -> None:
    """Every locked package has a version and hashes, and the lock names no host to get it from, not in a comment either."""
    whole = (ROOT / lock).read_text(encoding="utf-8")
    assert not re.search(r"://|(?<!no-emit-)index-url|find-links|trusted-host", whole)
    text = re.sub(r"(?m)^ *#.*\n", "", whole)
    packages = re.findall(r"^(\S+?)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)(?: \\)?$", text, re.M)
    assert len(packages) > 3
    assert [package for package, _ in packages if not re.fullmatch(r"[a-z0-9._-]+(?:\[[a-z,]+\])?==[\w.+!-]+", package)] == []
    assert [package for package, hashes in packages if not hashes] == []
    assert "@ " not in text


def locked(lock: str) -> dict[str, str]:
    """Version by package."""
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(encoding="utf-8"), re.M))


def test_the_locks_hold_what_the_project_asks_for() -> None:
    """Each dependency of pyproject.toml, the build tools included, is in the lock, and the two locks agree."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    asked = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    asked += [one for extra in project["project"]["optional-dependencies"].values() for one in extra]
    names = {re.split(r"[\[<>=~! ]", one)[0].lower() for one in asked}
    whole, first = locked("requirements.lock"), locked("bootstrap.lock")
    assert sorted(names - whole.keys()) == []
    assert {package: version for package, version in first.items() if whole.get(package) != version} == {}


def test_a_command_that_asks_a_service_loads_none() -> None:
    """Only the commands that need a library load it, and only those that run a node load one."""
    heavy = (
        "pydantic",
        "structlog",
        "rich",
        "sqlalchemy",
        "fastapi",
        "aiohttp",
        "aio_pika",
        "qcloud_cos",
        "tencentcloud",
        "simulator",
        "assembly",
    )
    program = f"import sys, service; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_module_begins_with_its_header() -> None:
    """The first line of a module names its subject. Imports are no part of it: import-linter holds them."""
    found = []
    for path in filter(written_by_hand, files(".py")):
        text = path.read_text(encoding="utf-8")
        header = ast.get_docstring(ast_helpers.parse(text)) or ""
        if text.strip() and not header:
            found.append(f"{name(path)} has no header")
    assert found == []


def test_no_file_is_too_long() -> None:
    """A file has one job, so it is short."""
    found = []
    for path in files(".py"):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > MOST_LINES:
            found.append(f"{name(path)}: {lines} lines, at most {MOST_LINES}")
    assert found == []


def test_names_say_something() -> None:
    """No module or folder has a vague name."""
    parts = {part.removesuffix(".py") for path in files(".py") for part in path.relative_to(ROOT).parts}
    assert parts & VAGUE_NAMES == set()


def test_every_protocol_has_two_implementations() -> None:
    """A Protocol is for a second implementation, in the source or in the tests; an exception has its reason."""
    modules = {name(path): ast_helpers.parse(path.read_text(encoding="utf-8")) for path in files(".py")}
    classes = {
        (Path(module).stem, node.name): (module, node)
        for module, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    nodes = {key: node for key, (_, node) in classes.items()}
    declared = [key for key in nodes if any(base == "Protocol" for _, base in source_text.bases(key, nodes))]
    offered = [source_text.members(key, nodes) for key in nodes.keys() - set(declared)]
    lonely = {
        f"{classes[key][0]} {key[1]}"
        for key in declared
        if sum(source_text.members(key, nodes) <= names for names in offered) < 2
    }
    assert lonely == PROTOCOLS_WITH_A_REASON.keys()


def test_no_test_sleeps() -> None:
    """A test waits for a condition with a time limit (`tests/waiting.py`), never for time to pass."""
    found = [
        f"{name(path)}: {call.func.attr}"
        for path in files(".py")
        if path.relative_to(ROOT).parts[0] == "tests" and path.name != "waiting.py"
        for call in ast.walk(ast_helpers.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "sleep"
    ]
    assert found == []


def test_every_test_says_what_it_proves() -> None:
    """Every test has a docstring of one sentence."""
    found = []
    for path in files(".py"):
        if not path.name.startswith("test_"):
            continue
        for node in ast.walk(ast_helpers.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                sentence = " ".join((ast.get_docstring(node) or "").split())
                found += [] if sentence.endswith((".", "…")) else [f"{name(path)}::{node.name}"]
    assert found == []


def leads_somewhere(page: Path, link: str) -> bool:
    """Whether a relative link names an existing file and, after #, one of its headings, as GitHub spells them."""
    file, _, anchor = link.partition("#")
    target = page.parent / file if file else page
    if not target.exists() or not anchor or target.suffix != ".md":
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    spelt = [
        re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower()).replace(" ", "-") for text in headings
    ]
    return anchor in spelt


def test_links_and_names_in_documents_lead_somewhere() -> None:
    """Every relative link leads to a file and a heading in it; every mentioned test and document exists."""
    found = []
    for path in files():
        if path.suffix not in (".md", ".py", ".toml", ".sh") or path == Path(__file__):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            links = [link for link in MARKDOWN_LINK.findall(text) if "://" not in link]
            found += [f"{name(path)} links to {link}" for link in links if not leads_somewhere(path, link)]
        for module, test in TEST_NAME.findall(text):
            known = (ROOT / module).is_file() and (not test or f"def {test}(" in (ROOT / module).read_text(encoding="utf-8"))
            found += [] if known else [f"{name(path)} cites {module}::{test}"]
        for document in MARKDOWN_NAME.findall(text):
            places = (ROOT / document, ROOT / "docs" / document, path.parent / document)
            found += [] if any(place.is_file() for place in places) else [f"{name(path)} names {document}"]
    assert sorted(set(found)) == []


def threats(text: str) -> list[str]:
    """The rows of the table of threats."""
    section = text.partition("\n### Threats\n")[2].partition("\n#")[0]
    return [line for line in section.splitlines() if line.startswith("|")][2:]


def unheld(rows: list[str]) -> list[str]:
    """The rows whose last cell is not a list of existing tests."""
    found = []
    for row in rows:
        cited = row.rstrip("| ").rpartition("|")[2].split(", ")
        names = [TEST_NAME.fullmatch(one.strip()) for one in cited]
        known = [one and one[2] and f"def {one[2]}(" in (ROOT / one[1]).read_text(encoding="utf-8") for one in names]
        found += [] if all(known) else [row]
    return found


def test_every_threat_names_the_test_that_holds_it() -> None:
    """SECURITY.md: every line of the threat model ends with an existing test."""
    rows = threats((ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(rows) >= 25
    assert unheld(rows) == []
    this = "`tests/unit/test_project_rules.py::test_every_threat_names_the_test_that_holds_it`"
    for wrong in ("", "nothing", "`tests/unit/test_project_rules.py`", this.replace("::test", "::no_test"), f"{this}, nothing"):
        assert unheld([f"| a threat | a guard | {wrong} |"]), "a line without a test would be noticed"
    assert unheld([f"| a threat | a guard | {this} |"]) == []


@pytest.mark.parametrize("script", [".ci/run", "deploy/bootstrap.sh"])
def test_scripts_are_whole(script: str) -> None:
    """A shell script has an interpreter line and stops at the first error."""
    first, *rest = (ROOT / script).read_text(encoding="utf-8").splitlines()
    assert first.startswith("#!/")
    assert any(line.startswith("set -e") for line in rest)
    if script == ".ci/run":
        assert os.access(ROOT / script, os.X_OK)
