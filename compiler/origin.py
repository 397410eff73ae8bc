"""Where a checked value comes from: file, line, and its text on one line, printed from the tree."""

from __future__ import annotations

from attnc.compiler.value import Origin
from attnc.dsl import tree

LONGEST = 160
"""Longer texts are cropped: they are comments in generated code and cells of tables."""


def origin(node: tree.Expression | tree.Case | tree.Setting) -> Origin:
    """The origin of a piece of syntax."""
    text = one_line(node)
    shown = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return Origin(file=node.span.source.name, line=node.span.line, text=shown)


def one_line(node: tree.Expression | tree.Case | tree.Setting | tree.Selector) -> str:
    """Syntax as `attnc fmt` spells it, without breaks."""
    match node:
        case tree.Name(text=text):
            return text
        case tree.Number(value=value, share=share):
            return f"{value:g}%" if share else f"{value:g}" if isinstance(value, float) else str(value)
        case tree.Range(low=low, high=high):
            return f"{one_line(low)}..{one_line(high)}"
        case tree.List(items=items):
            return f"[{', '.join(map(one_line, items))}]"
        case tree.Call(name=name, arguments=arguments):
            return f"{name.text}({_arguments(arguments)})"
        case tree.Setting(key=key, value=value):
            return f"{key.text} = {one_line(value)}"
        case tree.Else():
            return "else"
        case tree.Compare(left=left, operator=operator, right=right):
            return f"{one_line(left)} {operator} {one_line(right)}"
        case tree.Case(selector=selector, body=body):
            return f"{one_line(selector)}: {one_line(body)}"
        case _:
            return _operators(node)


def _operators(node: tree.Block | tree.Union | tree.With | tree.Add | tree.Chain) -> str:
    match node:
        case tree.Block(word=word, arguments=arguments, cases=cases):
            head = f"{word.text}({_arguments(arguments)})" if arguments else word.text
            return f"{head} {{ {', '.join(map(one_line, cases))} }}"
        case tree.Union(parts=parts):
            return " | ".join(_inner(part, (tree.With, tree.Add, tree.Chain)) for part in parts)
        case tree.With(body=body, settings=settings):
            return f"{_inner(body, (tree.With, tree.Add, tree.Chain))} {{ {', '.join(map(one_line, settings))} }}"
        case tree.Add(parts=parts):
            return " + ".join(_inner(part, (tree.Add, tree.Chain)) for part in parts)
        case tree.Chain(parts=parts):
            return " >> ".join(_inner(part, (tree.Chain,)) for part in parts)


def _inner(node: tree.Expression, looser: tuple[type, ...]) -> str:
    """An operand, in parentheses where it binds more loosely."""
    return f"({one_line(node)})" if isinstance(node, looser) else one_line(node)


def _arguments(arguments: tuple[tree.Argument, ...]) -> str:
    return ", ".join(f"{a.key.text} = {one_line(a.value)}" if a.key else one_line(a.value) for a in arguments)
