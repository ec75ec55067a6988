"""The rule that both engines are tested: pytest's collection, compared with the names that the tests' sources use.

Rule: a test depends on an engine if its id names one, or if its module uses a name that opens a database, a bus or a service.
Such a test is collected on both engines, or it is listed with a reason and names its engine.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from tests import ast_helpers

EMBEDDED, DISTRIBUTED = "embedded", "distributed"
SIDES = {
    "sqlite": EMBEDDED, "local": EMBEDDED, "embedded": EMBEDDED,
    "postgresql": DISTRIBUTED, "rabbitmq": DISTRIBUTED, "distributed": DISTRIBUTED,
}  # fmt: skip
"""Words in test ids, and the engine of each."""
OPENERS = {
    "engines.fresh", "engines.Database", "stores.Store", "connections.open_database", "postgres.shared", "postgres.Server",
    "rabbit.shared", "local.LocalBus", "rabbit_bus.RabbitBus", "buses.node", "service_process.ServiceProcess", "backends.make",
    "cluster.Cluster", "pages.Terminals", "api_keys.opened", "cli_runner.inside", "cli_runner.process",
}  # fmt: skip
"""Names that open a database, a bus or a service, as the tests write them."""
OPENERS_IN_TEXT = re.compile(r"service\.main\(\)|open_database\(")
"""Names in programs that a test writes to a file and runs as processes."""
ENGINE_NAMES = re.compile(r"sqlite|postgresql|rabbitmq|amqp|embedded|distributed", re.IGNORECASE)


@dataclass(slots=True)
class Module:
    """A test module: the names used by each function (`test`, or `Class.test`), and the module's docstrings."""

    header: str = ""
    mentions: dict[str, set[str]] = field(default_factory=dict)
    docstrings: dict[str, str] = field(default_factory=dict)

    def opens_an_engine(self, name: str) -> bool:
        """Whether a function, or anything in its module that it uses, fixtures included, opens part of an engine."""
        seen, ahead = set[str](), {name}
        while ahead:
            here = ahead.pop()
            seen.add(here)
            if self.mentions[here] & OPENERS:
                return True
            ahead |= {other for other in self.mentions[here] if other in self.mentions} - seen
        return False

    def names_its_engine(self, name: str) -> bool:
        """Whether header, docstring or name states the test's engine."""
        return ENGINE_NAMES.search(f"{self.header} {self.docstrings[name]}") is not None


def read(source: str) -> Module:
    """Parse a module."""
    tree = ast_helpers.parse(source)
    made = Module(header=ast.get_docstring(tree) or "")
    for name, node in _definitions(tree):
        made.mentions[name] = set(_mentioned(node))
        doc = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) else ""
        made.docstrings[name] = f"{name} {doc or ''}"
    return made


def faults(collected: list[str], sources: Mapping[str, str], listed: Mapping[str, str]) -> list[str]:
    """Violations of the rule. `collected`: ids as pytest prints them; `listed`: a module or `module::test`, and the reason."""
    sides: dict[str, set[str]] = {}
    for id_ in collected:
        test, _, words = id_.partition("[")
        sides.setdefault(test, set()).update(SIDES[word] for word in re.split(r"[-\]]", words) if word in SIDES)
    modules = {path: read(source) for path, source in sources.items()}
    found, used = [], set[str]()
    for test, on in sorted(sides.items()):
        path, _, name = test.partition("::")
        name = name.replace("::", ".")
        if len(on) == 2 or not (on or modules[path].opens_an_engine(name)):
            continue
        entry = next((key for key in (test, path) if key in listed), "")
        used.add(entry)
        if not entry:
            found.append(f"{test} runs on {next(iter(on), 'an engine that its id does not name')} alone")
        elif not modules[path].names_its_engine(name):
            found.append(f"{test} is about one engine, and neither it nor its header says which")
    return found + [f"{entry} is listed, and nothing in it runs on one engine alone" for entry in sorted({*listed} - used)]


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.AST]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((target.id, node) for target in targets if isinstance(target, ast.Name))
        if isinstance(node, ast.ClassDef):
            inner = (child for child in node.body if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef))
            yield from ((f"{node.name}.{child.name}", child) for child in inner)


def _mentioned(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg  # a fixture; its annotation opens nothing
        return
    elif isinstance(node, ast.Attribute):
        yield f"{node.value.id if isinstance(node.value, ast.Name) else ''}.{node.attr}"
    elif isinstance(node, ast.Constant) and isinstance(node.value, str) and OPENERS_IN_TEXT.search(node.value):
        yield "service_process.ServiceProcess"
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and name not in ("returns", "annotation"):
                yield from _mentioned(child)
