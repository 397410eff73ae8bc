"""Trees back to text: one expression on one line, or a whole file laid out.

The law: reading what was printed gives the same tree. Everything here is a function of the tree alone, so comments and
the writer's own line breaks are not kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal

from attnc.dsl import tree

WIDTH = 128
"""Columns that a line may have where it can be broken."""

FILLED = 84
"""Columns filled with settings that take several lines: short enough to be taken in at a glance."""

SMALL, LARGE = 1e-3, 1e4
"""Between these a number is written without an exponent."""

INDENT = "  "

OPERATORS = {tree.Chain: ">>", tree.Add: "+", tree.Union: "|"}
BINDING = {tree.Chain: 0, tree.Add: 1, tree.With: 2, tree.Union: 3}
"""How tightly an expression binds; what is not named here binds tightest. What binds less than its place asks for is put
in parentheses."""


def print_expression(node: tree.Expression | tree.Selector) -> str:
    """The expression on one line, in canonical ASCII."""
    match node:
        case tree.Name(text=text):
            return text
        case tree.Number():
            return print_number(node)
        case tree.Range(low=low, high=high):
            return f"{print_number(low)}..{print_number(high)}"
        case tree.List(items=items):
            return f"[{_comma(items)}]"
        case tree.Call(name=name, arguments=arguments):
            return f"{name.text}({_arguments(arguments)})"
        case tree.Block(word=word, arguments=arguments, cases=cases):
            return f"{_block_head(word, arguments)} {{ {', '.join(map(_case, cases))} }}"
        case tree.With(body=body, settings=settings):
            return f"{_operand(body, 3)} {{ {', '.join(map(_setting, settings))} }}"
        case tree.Union(parts=parts) | tree.Add(parts=parts) | tree.Chain(parts=parts):
            operator = f" {OPERATORS[type(node)]} "
            return operator.join(_operand(part, BINDING[type(node)] + 1) for part in parts)
        case tree.Else():
            return "else"
        case tree.Compare(left=left, operator=operator, right=right):
            return f"{print_expression(left)} {operator} {print_expression(right)}"


def print_number(number: tree.Number) -> str:
    """The shortest spelling that reads back as the same number: `1e-6`, `0.85`, `1e11`, `25%`."""
    value, share = number.value, "%" if number.share else ""
    positional = repr(value)
    if isinstance(value, int) or (SMALL <= abs(value) < LARGE) or value == 0:
        return f"{positional}{share}"
    sign, digits, _ = Decimal(positional).normalize().as_tuple()
    text = "".join(map(str, digits))
    mantissa = f"{text[0]}.{text[1:]}" if text[1:] else text
    scientific = f"{'-' * sign}{mantissa}e{Decimal(positional).adjusted()}"
    plain = "e" not in positional and len(positional) <= len(scientific)
    return f"{positional if plain else scientific}{share}"


def print_file(file: tree.File) -> str:
    """The file in canonical layout: items apart, lines of at most 128 columns where they can be broken, colons aligned."""
    text = ""
    before = ""
    for item in file.items:
        printed = _item(item)
        together = printed.startswith("mix ") and before.startswith("mix ")
        text += printed + "\n" if not before or together else "\n" + printed + "\n"
        before = printed
    return text


def _operand(node: tree.Expression, binding: int) -> str:
    text = print_expression(node)
    return f"({text})" if BINDING.get(type(node), 4) < binding else text


def _comma(nodes: Iterable[tree.Expression]) -> str:
    return ", ".join(map(print_expression, nodes))


def _arguments(arguments: Iterable[tree.Argument]) -> str:
    return ", ".join(map(_argument, arguments))


def _argument(argument: tree.Argument) -> str:
    value = print_expression(argument.value)
    return f"{argument.key.text} = {value}" if argument.key else value


def _setting(setting: tree.Setting) -> str:
    return f"{setting.key.text} = {print_expression(setting.value)}"


def _case(case: tree.Case) -> str:
    return f"{print_expression(case.selector)}: {print_expression(case.body)}"


def _block_head(word: tree.Name, arguments: Sequence[tree.Argument]) -> str:
    return f"{word.text}({_arguments(arguments)})" if arguments else word.text


def _item(item: tree.Item) -> str:
    match item:
        case tree.Model(name=name, settings=settings):
            return f"model {name.text} {_lines(map(_setting, settings), 0, '{', '}', '')}"
        case tree.Mix(name=name, body=body):
            return f"mix {name.text} = {_layout(body, 0, len(name.text) + 7)}"
        case tree.Layers(cases=cases):
            return f"layers {_braces_of_cases(cases, 0)}"
        case tree.Recipe(settings=settings):
            return f"recipe {_braces_of_settings(settings, 0, 7)}"
        case tree.Driver(name=name, settings=settings):
            return f"driver {name.text} {_braces_of_settings(settings, 0, 8 + len(name.text))}"


def _layout(node: tree.Expression, depth: int, column: int) -> str:
    """`node` from `column` on, broken if it has to be; later lines are indented by `depth` steps, or by one more."""
    line = print_expression(node)
    if column + len(line) <= WIDTH and not _has_block(node):
        return line
    match node:
        case tree.Union(parts=parts) | tree.Add(parts=parts) | tree.Chain(parts=parts):
            return _broken_operands(parts, OPERATORS[type(node)], BINDING[type(node)] + 1, depth, column)
        case tree.With(body=body, settings=settings):
            text = _layout_operand(body, 3, depth, column)
            return f"{text} {_braces_of_settings(settings, depth, len(text.splitlines()[-1]) + 1)}"
        case tree.Call(name=name, arguments=arguments):
            return name.text + _lines(map(_argument, arguments), depth, "(", ")", ",")
        case tree.List(items=items):
            return _lines(map(print_expression, items), depth, "[", "]", ",")
        case tree.Block(word=word, arguments=arguments, cases=cases):
            return f"{_block_head(word, arguments)} {_braces_of_cases(cases, depth)}"
    return line


def _layout_operand(node: tree.Expression, binding: int, depth: int, column: int) -> str:
    if BINDING.get(type(node), 4) < binding:
        return f"({_layout(node, depth, column + 1)})"
    return _layout(node, depth, column)


def _broken_operands(parts: Sequence[tree.Expression], operator: str, binding: int, depth: int, column: int) -> str:
    """On one line but for the last part, `a | b | routed(`, where that fits; else a line for each part."""
    *heads, last = parts
    head = f" {operator} ".join(_operand(part, binding) for part in heads)
    hugs = isinstance(last, tree.Call | tree.Block | tree.With) and not any(map(_has_block, heads))
    if hugs and column + len(head) + len(operator) + 32 <= WIDTH:
        return f"{head} {operator} {_layout_operand(last, binding, depth, column + len(head) + len(operator) + 2)}"
    lines = [_layout_operand(parts[0], binding, depth, column)]
    for part in parts[1:]:
        begin = f"{INDENT * (depth + 1)}{operator} "
        lines.append(begin + _layout_operand(part, binding, depth + 1, len(begin)))
    return "\n".join(lines)


def _braces_of_settings(settings: Sequence[tree.Setting], depth: int, column: int) -> str:
    line = f"{{ {', '.join(map(_setting, settings))} }}"
    return line if column + len(line) <= WIDTH else _lines(map(_setting, settings), depth, "{", "}", "")


def _braces_of_cases(cases: Sequence[tree.Case], depth: int) -> str:
    line = f"{{ {', '.join(map(_case, cases))} }}"
    if len(cases) == 1 and not _has_block(cases[0].body) and 2 * depth + len(line) + 8 <= WIDTH:
        return line
    inside = INDENT * (depth + 1)
    selectors = [print_expression(case.selector) for case in cases]
    column = len(inside) + max(map(len, selectors)) + 2
    bodies = [_layout(case.body, depth + 1, column) for case in cases]
    widths = _aligned([len(selector) for selector in selectors], ["\n" not in body for body in bodies])
    lines = [f"{inside}{s:{width}}: {body}" for s, width, body in zip(selectors, widths, bodies, strict=True)]
    return "\n".join(["{", *lines, INDENT * depth + "}"])


def _aligned(widths: list[int], single: list[bool]) -> list[int]:
    """The columns of each selector: in a run of cases that take one line each, those of the longest."""
    aligned = list(widths)
    start = 0
    while start < len(widths):
        end = start
        while end < len(widths) and single[end]:
            end += 1
        aligned[start:end] = [max(widths[start:end], default=0)] * (end - start)
        start = end + 1
    return aligned


def _lines(entries: Iterable[str], depth: int, opening: str, closing: str, separator: str) -> str:
    """Brackets on lines of their own, the entries between them filling lines; `separator` ends a line that is not the last."""
    inside = INDENT * (depth + 1)
    lines: list[str] = []
    for entry in entries:
        if lines and len(lines[-1]) + len(entry) + 3 <= (WIDTH if separator else FILLED):
            lines[-1] += f", {entry}"
        else:
            lines.append(inside + entry)
    return "\n".join([opening, f"{separator}\n".join(lines), INDENT * depth + closing])


def _has_block(node: tree.Expression) -> bool:
    match node:
        case tree.Block():
            return True
        case tree.With(body=body):
            return _has_block(body)
        case tree.Union(parts=parts) | tree.Add(parts=parts) | tree.Chain(parts=parts):
            return any(map(_has_block, parts))
        case tree.Call(arguments=arguments):
            return any(_has_block(argument.value) for argument in arguments)
    return False
