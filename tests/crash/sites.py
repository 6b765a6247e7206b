"""Sites: every place in the library's source where a coroutine waits, found by reading it, and made to tell when it is met.

An ``await`` is one site, an ``async with`` two (entering and leaving) for each of its items, an ``async for`` one. A site's
name is the function it stands in and its number there, so that it does not change with lines above.
"""

import ast
import builtins
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import Any, NamedTuple, TypeVar

F = TypeVar("F", ast.AsyncFor, ast.comprehension)

ROOT = Path(__file__).parents[2]
CORE = "outboxkit"
ADAPTERS = ("outboxkit_sqlite", "outboxkit_postgres", "outboxkit_redis")
_NOT_RUN = ("outboxkit.testing", "outboxkit.cli")
"""What is no part of a running service."""

AWAIT, WITH, FOR = "__crash_await__", "__crash_with__", "__crash_for__"


class Site(NamedTuple):
    """A place where a coroutine waits."""

    name: str
    path: str
    line: int
    text: str

    @property
    def is_core(self) -> bool:
        """Whether it is in the core, and not in an adapter."""
        return self.path.startswith(f"{CORE}/")

    def __str__(self) -> str:
        return f"{self.path}:{self.line} {self.name}: {self.text}"


class _Marking(ast.NodeTransformer):
    """Has every place where a coroutine waits call one of three functions, with the site's name."""

    def __init__(self, module: str, path: str, source: str) -> None:
        self._path = path
        self._source = source
        self._scope = [module.removeprefix(f"{CORE}.").removeprefix(f"{CORE}_")]
        self._numbers: Counter[str] = Counter()
        self.sites: list[Site] = []

    def _scoped(self, node: Any) -> Any:
        self._scope.append(node.name)
        self.generic_visit(node)
        self._scope.pop()
        return node

    visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _scoped  # noqa: N815 - as `ast` calls them

    def visit_Await(self, node: ast.Await) -> ast.AST:
        name = self._number()
        self._found(name, node)
        self.generic_visit(node)
        node.value = self._marked(AWAIT, name, node.value)
        return node

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        for item in node.items:
            name = self._number()
            self._found(f"{name}+enter", item.context_expr, "async with ")
            self._found(f"{name}+exit", item.context_expr, "end of async with ")
            item.context_expr = self._marked(WITH, name, item.context_expr)
        self.generic_visit(node)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self._iterating(node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        if node.is_async:
            return self._iterating(node)
        self.generic_visit(node)
        return node

    def _iterating(self, node: F) -> F:
        name = self._number()
        self._found(name, node.iter, "async for ")
        node.iter = self._marked(FOR, name, node.iter)
        self.generic_visit(node)
        return node

    def _number(self) -> str:
        scope = ".".join(self._scope)
        self._numbers[scope] += 1
        return f"{scope}#{self._numbers[scope]}"

    def _found(self, name: str, node: Any, before: str = "") -> None:
        text = " ".join((ast.get_source_segment(self._source, node) or "").split())
        self.sites.append(Site(name, self._path, node.lineno, f"{before}{text}"[:100]))

    def _marked(self, function: str, name: str, value: ast.expr) -> ast.expr:
        call = ast.Call(ast.Name(function, ast.Load()), [ast.Constant(name), value], [])
        return ast.fix_missing_locations(ast.copy_location(call, value))


def _marked_module(module: str, path: Path) -> tuple[ast.Module, Sequence[Site]]:
    source = path.read_text(encoding="utf-8")
    marking = _Marking(module, _shown(path), source)
    return ast.fix_missing_locations(marking.visit(ast.parse(source, str(path)))), marking.sites


def _shown(path: Path) -> str:
    return str(path.relative_to(ROOT)).removeprefix("adapters/")


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in ((CORE, ROOT), *((name, ROOT / "adapters") for name in ADAPTERS)):
        for path in sorted((folder / package).glob("*.py")):
            yield package if path.stem == "__init__" else f"{package}.{path.stem}", path


def import_all() -> None:
    """Import every module that has sites, now and not when it is needed."""
    for module, _ in _modules():
        if not module.startswith(_NOT_RUN):
            importlib.import_module(module)


def all_sites() -> dict[str, Site]:
    """Return every site of the core and of the adapters, by name."""
    return {site.name: site for module, path in _modules() for site in _marked_module(module, path)[1]}


class _Loader(importlib.machinery.SourceFileLoader):
    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        tree, _ = _marked_module(self.name, Path(path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def get_code(self, fullname: str) -> CodeType | None:
        # Past the cache of compiled files, which is not to hold ours.
        path = self.get_filename(fullname)
        return self.source_to_code(self.get_data(path), path)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self) -> None:
        self._paths = dict(_modules())

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        found = self._paths.get(fullname)
        if found is None or fullname.startswith(_NOT_RUN):
            return None
        places = [str(found.parent)] if found.stem == "__init__" else None
        loader = _Loader(fullname, str(found))
        return importlib.util.spec_from_file_location(fullname, found, loader=loader, submodule_search_locations=places)


def instrument(await_: Any, with_: Any, for_: Any) -> None:
    """Have the library, which must not be imported yet, call these at each site, with its name and what is awaited there."""
    if CORE in sys.modules:
        raise RuntimeError("the library is imported already: its sites cannot be marked any more")
    for name, function in ((AWAIT, await_), (WITH, with_), (FOR, for_)):
        setattr(builtins, name, function)
    sys.meta_path.insert(0, _Finder())
