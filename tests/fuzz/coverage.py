"""Which lines, and which steps from line to line, an execution came by, in some modules."""

import sys
from collections.abc import Callable, Collection
from types import CodeType, FrameType, ModuleType
from typing import Any, TypeVar

T = TypeVar("T")

Step = tuple[str, int, int]


class Coverage:
    """Watches modules while a function runs, for as long as that is asked for: it takes several times as long."""

    def __init__(self, modules: Collection[ModuleType]) -> None:
        self._files = {str(module.__file__) for module in modules}
        self._last: dict[FrameType, int] = {}
        self._found: set[Step] = set()
        self.steps: set[Step] = set()
        """All there have been."""
        self.lines_there_are = sum(len(_lines(file)) for file in self._files)

    @property
    def lines(self) -> int:
        """How many lines were come by."""
        return len({(file, line) for file, _, line in self.steps})

    def watch(self, function: Callable[[], T]) -> tuple[T, bool]:
        """Run a function; return what it does, and whether it came by anything new."""
        self._found.clear()
        sys.settrace(self._enter)
        try:
            answer = function()
        finally:
            sys.settrace(None)
            self._last.clear()
        before = len(self.steps)
        self.steps |= self._found
        return answer, len(self.steps) > before

    def _enter(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename not in self._files:
            return None
        self._last[frame] = 0
        return self._step

    def _step(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self._found.add((frame.f_code.co_filename, self._last[frame], frame.f_lineno))
            self._last[frame] = frame.f_lineno
        return self._step


def _lines(file: str) -> set[int]:
    """Return the lines of a file's functions that can be run; what runs at its import is none of it."""
    with open(file, encoding="utf-8") as source:  # noqa: PTH123 - of a module
        whole = compile(source.read(), file, "exec")
    found: set[int] = set()
    codes = [constant for constant in whole.co_consts if isinstance(constant, CodeType)]
    while codes:
        code = codes.pop()
        inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        codes += inner
        if code.co_flags & 0x0002:  # a function, and no class body
            found |= {line for _, _, line in code.co_lines() if line is not None and line != code.co_firstlineno}
    return found
