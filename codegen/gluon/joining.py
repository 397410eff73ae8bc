"""A Gluon skeleton and the parts that it imports, as one text that stands alone.

What several skeletons share stands in files of its own beside them. A skeleton imports what it uses of these, they import from
each other, and those functions and constants, with what they use in turn, go before the skeleton's own.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from attnc.codegen.triton.emit import Statement, statements

HERE = Path(__file__).parent
PACKAGE = "attnc.codegen.gluon."


@dataclass(frozen=True)
class Part:
    """A file: its text, its functions and constants, and what it imports.

    ours     what it takes of other parts: name -> module
    outside  what it takes of packages: name as it is used -> module, name as the module has it ("": the module itself)
    """

    module: str
    source: str
    own: dict[str, Statement]
    ours: dict[str, str]
    outside: dict[str, tuple[str, str]]

    @classmethod
    def of(cls, module: str) -> Part:
        """The part that is imported by this name."""
        path = HERE / f"{module.removeprefix(PACKAGE).replace('.', '/')}.py"
        source = path.read_text(encoding="utf-8")
        ours: dict[str, str] = {}
        outside: dict[str, tuple[str, str]] = {}
        for node in ast.parse(source).body:
            if isinstance(node, ast.ImportFrom):
                assert node.module is not None
                for alias in node.names:
                    if node.module.startswith(PACKAGE):
                        ours[alias.name] = node.module
                    else:
                        outside[alias.asname or alias.name] = (node.module, alias.name)
            elif isinstance(node, ast.Import):
                outside |= {alias.name: (alias.name, "") for alias in node.names}
        return cls(module, source, {one.name: one for one in statements(source)}, ours, outside)

    def text(self, name: str) -> str:
        """A function or constant."""
        lines = self.source.splitlines()
        return "\n".join(lines[self.own[name].first : self.own[name].end])


part = lru_cache(maxsize=32)(Part.of)


@dataclass
class Joining:
    """What is collected: constants and functions, each after those that it uses, and imports."""

    constants: dict[str, str] = field(default_factory=dict)
    functions: dict[str, str] = field(default_factory=dict)
    outside: dict[str, tuple[str, str]] = field(default_factory=dict)

    def use(self, of: Part, text: str) -> None:
        """All that a text of this part uses."""
        used = {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}
        for name, module in (dict.fromkeys(of.own, of.module) | of.ours).items():
            if name in used and name not in self.constants and name not in self.functions:
                self.take(part(module), name)
        self.outside |= {name: place for name, place in of.outside.items() if name in used}

    def take(self, of: Part, name: str) -> None:
        """A function or constant, with all that it uses."""
        kept = self.functions if of.own[name].function else self.constants
        kept[name] = ""  # it may use itself
        self.use(of, of.text(name))
        kept[name] = kept.pop(name) or of.text(name)

    def imports(self) -> list[str]:
        """The lines of the imports, modules before names."""
        whole = [f"import {module}" for module, name in sorted(set(self.outside.values())) if not name]
        names: dict[str, list[str]] = {}
        for used, (module, name) in sorted(self.outside.items()):
            if name:
                names.setdefault(module, []).append(name if used == name else f"{name} as {used}")
        return [*whole, *(f"from {module} import {', '.join(one)}" for module, one in sorted(names.items()))]


@lru_cache(maxsize=8)
def joined(skeleton: str) -> str:
    """The text of a skeleton by its name: its docstring, all imports, its constants, others', others' functions, its own."""
    whole = part(f"{PACKAGE}skeletons.{skeleton}")
    first = next(node for node in ast.parse(whole.source).body if isinstance(node, ast.Expr))
    assert first.end_lineno is not None
    own: dict[bool, list[str]] = {False: [], True: []}
    collected = Joining()
    for name, one in whole.own.items():
        own[one.function].append(whole.text(name))
        collected.use(whole, whole.text(name))
    functions = [text for name, text in collected.functions.items() if name not in whole.own]
    constants = [text for name, text in collected.constants.items() if name not in whole.own]
    head = [*whole.source.splitlines()[: first.end_lineno], "", *collected.imports(), "", *own[False], "", *constants]
    return "\n\n\n".join(["\n".join(head), *functions, *own[True]]) + "\n"
