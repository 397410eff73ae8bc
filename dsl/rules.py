"""Rules of a whole file that a grammar cannot say: how many of what, nothing twice, `else` last."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from attnc.dsl import tree
from attnc.dsl.diagnostic import Edit
from attnc.dsl.excerpt import quoted
from attnc.dsl.problems import Problems
from attnc.dsl.source import Span

AT_MOST_ONE = (
    (tree.Model, "model", "A021"),
    (tree.Layers, "layers", "A023"),
    (tree.Recipe, "recipe", "A024"),
    (tree.Driver, "driver", "A025"),
)


def check_file(file: tree.File, problems: Problems, *, whole: bool) -> None:
    """Report what breaks the rules. `whole`: the tree holds all of the file, so that what is missing in it is missing."""
    _count_items(file, problems, whole)
    mixes: dict[str, Span] = {}
    for item in file.items:
        if isinstance(item, tree.Mix):
            help_text = "give one of them another name"
            _refuse_second(mixes, item.name, "A026", "the mix {} is defined twice", help_text, problems)
        _check(item, problems)


def _count_items(file: tree.File, problems: Problems, whole: bool) -> None:
    for sort, word, code in AT_MOST_ONE:
        heads = [_head(item, word) for item in file.items if isinstance(item, sort)]
        for head in heads[1:]:
            problems.add(code, f"a spec has one `{word}`; this is another", head, notes=((f"the first `{word}`", heads[0]),))
    if not whole:
        return
    end = Span(file.source, len(file.source.text), len(file.source.text))
    if not any(isinstance(item, tree.Model) for item in file.items):
        example = (
            "write `model NAME { vocab = 32000, dim = 2048, layers = 24, heads = 16, ffn = swiglu(5632), norm = rms(1e-6) }`"
        )
        problems.add("A020", "the spec has no `model`", end, help=example)
    if not any(isinstance(item, tree.Layers) for item in file.items):
        problems.add(
            "A022", "the spec has no `layers`", end, help="write `layers { all: full }`, or a rule for each sort of layer"
        )


def _head(item: tree.Item, word: str) -> Span:
    return Span(item.span.source, item.span.start, item.span.start + len(word))


def _check(node: tree.Item | tree.Expression, problems: Problems) -> None:
    match node:
        case tree.Model(settings=settings) | tree.Recipe(settings=settings) | tree.Driver(settings=settings):
            _check_settings(settings, problems)
        case tree.With(settings=settings):
            _check_settings(settings, problems)
        case tree.Call(arguments=arguments):
            _check_arguments(arguments, problems)
        case tree.Block(arguments=arguments, cases=cases):
            _check_arguments(arguments, problems)
            _check_else(cases, problems)
        case tree.Layers(cases=cases):
            _check_else(cases, problems)
        case tree.Range(low=low, high=high):
            if low.share == high.share and low.value > high.value:
                help_text = f"write `{high.span.text}..{low.span.text}`"
                fix = f"{high.span.text}..{low.span.text}"
                problems.add(
                    "A031", f"the range {quoted(node.span.text)} ends before it begins", node.span, help=help_text, fix=fix
                )
    for part in parts(node):
        _check(part, problems)


def parts(node: tree.Item | tree.Expression) -> Iterator[tree.Expression]:
    """The expressions directly inside of a node, selectors included."""
    match node:
        case tree.Model(settings=settings) | tree.Recipe(settings=settings) | tree.Driver(settings=settings):
            yield from (setting.value for setting in settings)
        case tree.Mix(body=body):
            yield body
        case tree.With(body=body, settings=settings):
            yield body
            yield from (setting.value for setting in settings)
        case tree.Union(parts=operands) | tree.Add(parts=operands) | tree.Chain(parts=operands):
            yield from operands
        case tree.List(items=items):
            yield from items
        case tree.Call(arguments=arguments):
            yield from (argument.value for argument in arguments)
        case tree.Layers(cases=cases):
            yield from _of_cases(cases)
        case tree.Block(arguments=arguments, cases=cases):
            yield from (argument.value for argument in arguments)
            yield from _of_cases(cases)


def _of_cases(cases: Iterable[tree.Case]) -> Iterator[tree.Expression]:
    for case in cases:
        match case.selector:
            case tree.Compare(left=left, right=right):
                yield from (left, right)
            case tree.Else():
                pass
            case value:
                yield value
        yield case.body


def _check_settings(settings: Iterable[tree.Setting], problems: Problems) -> None:
    seen: dict[str, Span] = {}
    for setting in settings:
        _refuse_second(seen, setting.key, "A027", "the key {} is given twice", "delete one of them", problems)


def _check_arguments(arguments: Iterable[tree.Argument], problems: Problems) -> None:
    seen: dict[str, Span] = {}
    for argument in arguments:
        if argument.key:
            _refuse_second(seen, argument.key, "A028", "the argument {} is given twice", "delete one of them", problems)


def _check_else(cases: tuple[tree.Case, ...], problems: Problems) -> None:
    others = [case for case in cases if isinstance(case.selector, tree.Else)]
    for case in others[1:]:
        notes = (("the first `else`", others[0].selector.span),)
        problems.add(
            "A030", "a second `else` in one pair of braces", case.selector.span, notes=notes, help="delete one of them"
        )
    if len(others) == 1 and others[0] is not cases[-1]:
        message = "`else` is not the last case"
        help_text = "move it to the end: it holds where no other case does"
        problems.add("A029", message, others[0].selector.span, help=help_text, fix=_last(others[0], cases))


def _last(other: tree.Case, cases: tuple[tree.Case, ...]) -> Edit | None:
    """`else` behind the other cases; None where a comment stands among them, whose case nobody knows."""
    following, moving, end = cases[cases.index(other) + 1], whole(other), whole(cases[-1]).end
    source, span = moving.source, Span(moving.source, moving.start, end)
    between = source.text[moving.end : following.span.start]
    moved = source.text[following.span.start : end] + between + moving.text
    return None if "#" in span.text else Edit(span, moved)


def whole(case: tree.Case) -> Span:
    """A case with the parentheses that close behind its body, for edits: in the tree, a body's span is without them.

    With a comment inside, it may lack them; nothing is edited then.
    """
    span = case.span
    text, end = span.source.text, span.end
    lacking = 0 if "#" in span.text else span.text.count("(") - span.text.count(")")
    for _ in range(lacking):
        end = text.index(")", end) + 1
    return Span(span.source, span.start, end)


def _refuse_second(seen: dict[str, Span], name: tree.Name, code: str, message: str, help_text: str, problems: Problems) -> None:
    """Names without text stand where recovery filled a gap."""
    if not name.text:
        return
    if name.text in seen:
        notes = ((f"the first {quoted(name.text)}", seen[name.text]),)
        problems.add(code, message.format(quoted(name.text)), name.span, notes=notes, help=help_text)
    else:
        seen[name.text] = name.span
