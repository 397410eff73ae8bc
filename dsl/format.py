"""Trees back to text: one expression on one line, or a whole file laid out.

The law: reading what was printed gives the same tree. Everything here is a function of the tree alone: which words, and
where a line is too long. dsl/layout.py makes text of them; dsl/reformat.py keeps a writer's own lines and comments.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal

from attnc.dsl import tree
from attnc.dsl.layout import INDENT, Piece, joined, laid_out

WIDTH = 128
"""Columns that a line may have where it can be broken."""

FILLED = 84
"""Columns filled with settings that take several lines: short enough to be taken in at a glance."""

SMALL, LARGE = 1e-3, 1e4
"""Between these a number is written without an exponent."""

OPERATORS = {tree.Chain: ">>", tree.Add: "+", tree.Union: "|"}
BINDING = {tree.Chain: 0, tree.Add: 1, tree.With: 2, tree.Union: 3}
"""How tightly an expression binds; what is not named here binds tightest. What binds less than its place asks for is put
in parentheses."""


def print_expression(node: tree.Expression | tree.Selector) -> str:
    """The expression on one line, in canonical ASCII."""
    return joined(_words(node))


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
    pieces: list[Piece] = []
    before: tree.Item | None = None
    for item in file.items:
        first, *others = _item(item)
        together = isinstance(item, tree.Mix) and isinstance(before, tree.Mix)
        pieces += [first._replace(lines=1 if together else 2), *others]
        before = item
    return laid_out(pieces)


def _words(node: tree.Expression | tree.Selector) -> Iterator[str]:
    match node:
        case tree.Name(text=text):
            yield text
        case tree.Number():
            yield print_number(node)
        case tree.Range(low=low, high=high):
            yield from (print_number(low), "..", print_number(high))
        case tree.List(items=items):
            yield from ("[", *_separated(map(_words, items)), "]")
        case tree.Call(name=name, arguments=arguments):
            yield from (name.text, *_arguments(arguments))
        case tree.Block(word=word, arguments=arguments, cases=cases):
            yield from (*_block_head(word, arguments), "{", *_separated(map(_case, cases)), "}")
        case tree.With(body=body, settings=settings):
            yield from (*_operand(body, 3), "{", *_separated(map(_setting, settings)), "}")
        case tree.Union(parts=parts) | tree.Add(parts=parts) | tree.Chain(parts=parts):
            binding = BINDING[type(node)] + 1
            yield from _separated((_operand(part, binding) for part in parts), OPERATORS[type(node)])
        case tree.Else():
            yield "else"
        case tree.Compare(left=left, operator=operator, right=right):
            yield from (*_words(left), operator, *_words(right))


def _separated(entries: Iterable[Iterable[str]], separator: str = ",") -> Iterator[str]:
    for index, entry in enumerate(entries):
        if index:
            yield separator
        yield from entry


def _operand(node: tree.Expression, binding: int) -> Iterable[str]:
    return ("(", *_words(node), ")") if BINDING.get(type(node), 4) < binding else _words(node)


def _arguments(arguments: Iterable[tree.Argument]) -> Iterable[str]:
    return ("(", *_separated(map(_argument, arguments)), ")")


def _argument(argument: tree.Argument) -> Iterable[str]:
    return (argument.key.text, "=", *_words(argument.value)) if argument.key else _words(argument.value)


def _setting(setting: tree.Setting) -> Iterable[str]:
    return (setting.key.text, "=", *_words(setting.value))


def _case(case: tree.Case) -> Iterable[str]:
    return (*_words(case.selector), ":", *_words(case.body))


def _block_head(word: tree.Name, arguments: Sequence[tree.Argument]) -> Iterable[str]:
    return (word.text, *_arguments(arguments)) if arguments else (word.text,)


def _item(item: tree.Item) -> list[Piece]:
    match item:
        case tree.Model(name=name, settings=settings):
            return [*_line("model", name.text), *_lines(map(_setting, settings), 0, "{", "}", "")]
        case tree.Mix(name=name, body=body):
            return [*_line("mix", name.text, "="), *_layout(body, 0, len(name.text) + 7)]
        case tree.Layers(cases=cases):
            return [*_line("layers"), *_braces_of_cases(cases, 0)]
        case tree.Recipe(settings=settings):
            return [*_line("recipe"), *_braces_of_settings(settings, 0, 7)]
        case tree.Driver(name=name, settings=settings):
            return [*_line("driver", name.text), *_braces_of_settings(settings, 0, 8 + len(name.text))]


def _line(*words: str) -> list[Piece]:
    return [Piece(word) for word in words]


def _layout(node: tree.Expression, depth: int, column: int) -> list[Piece]:
    """`node` from `column` on, broken if it has to be; later lines are indented by `depth` steps, or by one more."""
    words = list(_words(node))
    if column + len(joined(words)) <= WIDTH and not _has_block(node):
        return _line(*words)
    match node:
        case tree.Union(parts=parts) | tree.Add(parts=parts) | tree.Chain(parts=parts):
            return _broken_operands(parts, OPERATORS[type(node)], BINDING[type(node)] + 1, depth, column)
        case tree.With(body=body, settings=settings):
            pieces = _layout_operand(body, 3, depth, column)
            return [*pieces, *_braces_of_settings(settings, depth, _end(pieces, depth, column) + 1)]
        case tree.Call(name=name, arguments=arguments):
            return [Piece(name.text), *_lines(map(_argument, arguments), depth, "(", ")", ",")]
        case tree.List(items=items):
            return _lines(map(_words, items), depth, "[", "]", ",")
        case tree.Block(word=word, arguments=arguments, cases=cases):
            return [*_line(*_block_head(word, arguments)), *_braces_of_cases(cases, depth)]
    return _line(*words)


def _end(pieces: list[Piece], depth: int, column: int) -> int:
    """The column behind the last of `pieces`, which begin at `column`."""
    start = max((index for index, piece in enumerate(pieces) if piece.lines), default=None)
    begin = column if start is None else len(INDENT) * depth
    return begin + len(joined(piece.text for piece in pieces[start or 0 :]))


def _layout_operand(node: tree.Expression, binding: int, depth: int, column: int) -> list[Piece]:
    if BINDING.get(type(node), 4) < binding:
        return [Piece("("), *_layout(node, depth, column + 1), Piece(")")]
    return _layout(node, depth, column)


def _broken_operands(parts: Sequence[tree.Expression], operator: str, binding: int, depth: int, column: int) -> list[Piece]:
    """On one line but for the last part, `a | b | routed(`, where that fits; else a line for each part."""
    *heads, last = parts
    head = [*_separated((_operand(part, binding) for part in heads), operator), operator]
    hugs = isinstance(last, tree.Call | tree.Block | tree.With) and not any(map(_has_block, heads))
    begin = column + len(joined(head)) + 1
    if hugs and begin + 31 <= WIDTH:
        return [*_line(*head), *_layout_operand(last, binding, depth, begin)]
    pieces = _layout_operand(parts[0], binding, depth, column)
    for part in parts[1:]:
        begin = len(INDENT) * (depth + 1) + len(operator) + 1
        pieces += [Piece(operator, 1), *_layout_operand(part, binding, depth + 1, begin)]
    return pieces


def _braces_of_settings(settings: Sequence[tree.Setting], depth: int, column: int) -> list[Piece]:
    line = ["{", *_separated(map(_setting, settings)), "}"]
    return _line(*line) if column + len(joined(line)) <= WIDTH else _lines(map(_setting, settings), depth, "{", "}", "")


def _braces_of_cases(cases: Sequence[tree.Case], depth: int) -> list[Piece]:
    line = ["{", *_separated(map(_case, cases)), "}"]
    if len(cases) == 1 and not _has_block(cases[0].body) and 2 * depth + len(joined(line)) + 8 <= WIDTH:
        return _line(*line)
    selectors = [list(_words(case.selector)) for case in cases]
    column = len(INDENT) * (depth + 1) + max(len(joined(words)) for words in selectors) + 2
    pieces = [Piece("{")]
    for (first, *others), case in zip(selectors, cases, strict=True):
        pieces += [Piece(first, 1), *_line(*others, ":"), *_layout(case.body, depth + 1, column)]
    return [*pieces, Piece("}", 1)]


def _lines(entries: Iterable[Iterable[str]], depth: int, opening: str, closing: str, separator: str) -> list[Piece]:
    """Brackets on lines of their own, the entries between them filling lines; `separator` ends a line that is not the last."""
    pieces, column = [Piece(opening)], 0
    for entry in entries:
        words = list(entry)
        width = len(joined(words))
        if column and column + width + 3 <= (WIDTH if separator else FILLED):
            pieces += _line(",", *words)
            column += 2 + width
        else:
            pieces += [*_line(*(separator if column else "")), Piece(words[0], 1), *_line(*words[1:])]
            column = len(INDENT) * (depth + 1) + width
    return [*pieces, Piece(closing, 1)]


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
