"""A method on another model: METHOD's mixes, layers, recipe and driver on MODEL's body.

What METHOD's own model sets for its mixers (head counts, rotary base, qk_norm) is left behind: MODEL's settings stand, because
its weights were trained with them.
"""

from __future__ import annotations

from dataclasses import replace

from attnc.compiler.check import check
from attnc.compiler.groups import split
from attnc.compiler.place import Place
from attnc.compiler.problems import Problems
from attnc.compiler.selectors import owners, ranges
from attnc.dsl import tree
from attnc.dsl.diagnostic import Diagnostic, Edit, SpecError
from attnc.dsl.format import print_expression, print_file
from attnc.dsl.source import Source, Span

LAYER_CODES = ("A200", "A201", "A202")
GROUP_CODES = ("A205", "A206", "A207")


def graft(method: tree.File, onto: tree.File) -> str:
    """The text of a new spec in canonical layout, which passes the checker.

    Raises SpecError with the checker's codes. Rules that do not fit point into METHOD, with MODEL's number of layers or KV
    groups beside them and, where METHOD's own model shows what was meant, with rules that do fit.
    """
    body = model_of(onto)
    rest = tuple(item for item in method.items if not isinstance(item, tree.Model))
    joined = replace(method, items=(body, *rest))
    try:
        check(joined)
    except SpecError as error:
        raise SpecError([_advised(diagnostic, method, onto) for diagnostic in error.diagnostics]) from None
    title = f"# {_title(method)}, on {body.name.text.replace('_', '-')}."
    return f"{title[:128]}\n{print_file(joined)}"


def model_of(file: tree.File) -> tree.Model:
    """The model of a file; the parser asks for one."""
    return next(item for item in file.items if isinstance(item, tree.Model))


def _title(method: tree.File) -> str:
    """METHOD's first comment up to its first full stop, else its model's name."""
    first = method.source.text.lstrip("\ufeff").split("\n", 1)[0].strip()
    if first.startswith("#") and first.strip("# "):
        return first.lstrip("# ").split(". ")[0].split(": ")[0].rstrip(". ")
    return model_of(method).name.text.replace("_", "-")


def _advised(diagnostic: Diagnostic, method: tree.File, onto: tree.File) -> Diagnostic:
    """The checker's diagnostic, with the number of MODEL that METHOD's rules do not fit, and rules that do."""
    if diagnostic.span.source != method.source:
        return diagnostic
    if diagnostic.code in LAYER_CODES:
        return _about_layers(diagnostic, method, onto)
    if diagnostic.code in GROUP_CODES:
        return _about_groups(diagnostic, method, onto)
    return diagnostic


def _about_layers(diagnostic: Diagnostic, method: tree.File, onto: tree.File) -> Diagnostic:
    noted = _noted(diagnostic, onto, "layers")
    cases = next(item for item in method.items if isinstance(item, tree.Layers)).cases
    here, there = number_of(onto, "layers"), number_of(method, "layers")
    place = Place(Problems())
    if here is None or there is None:
        return noted
    owner = owners(cases, there, place)
    if owner is None or place.problems.found:
        return noted
    return _with_rules(noted, cases, resampled(owner, here), f"{here} layers")


def _about_groups(diagnostic: Diagnostic, method: tree.File, onto: tree.File) -> Diagnostic:
    noted = _noted(diagnostic, onto, "kv_heads")
    here, there = number_of(onto, "kv_heads", "heads"), number_of(method, "kv_heads", "heads")
    blocks = [block for block in _heads_blocks(method) if _covers(block.span, diagnostic.span)]
    if here is None or there is None or not blocks:
        return noted
    block = min(blocks, key=lambda block: block.span.end - block.span.start)
    problems = Problems()
    runs = split(block, there, problems)
    if runs is None:
        return noted
    owner = [case for first, last, case in runs for _ in range(first, last + 1)]
    return _with_rules(noted, block.cases, resampled(owner, here), f"{here} KV groups")


def resampled(owner: list[int], count: int) -> list[int]:
    """The same rules at the same relative places of `count` layers or KV groups."""
    return [owner[(2 * place + 1) * len(owner) // (2 * count)] for place in range(count)]


def _noted(diagnostic: Diagnostic, onto: tree.File, key: str) -> Diagnostic:
    """With the place where MODEL says how many there are."""
    body = model_of(onto)
    settings = {setting.key.text: setting for setting in body.settings}
    setting = settings.get(key) or settings.get("heads")
    span = setting.span if setting else body.name.span
    return replace(diagnostic, notes=(*diagnostic.notes, ("the model that the method is grafted onto", span)))


def _with_rules(diagnostic: Diagnostic, cases: tuple[tree.Case, ...], owner: list[int], of: str) -> Diagnostic:
    """With a fix: every case at the same relative place as in METHOD, selected by numbers; `else` stays."""
    if set(owner) != set(range(len(cases))):
        return diagnostic  # so few layers or groups that a case would be left without one: nothing to propose
    selectors = [_selector(case, owner, index) for index, case in enumerate(cases)]
    rules = [f"{selector}: {print_expression(case.body)}" for selector, case in zip(selectors, cases, strict=True)]
    span = Span(cases[0].span.source, cases[0].span.start, cases[-1].span.end)
    advice = f"at the same places of {of}: {', '.join(f'`{selector}: ...`' for selector in selectors)}"
    return replace(diagnostic, help=advice, fix=Edit(span, ", ".join(rules)))


def _selector(case: tree.Case, owner: list[int], index: int) -> str:
    if isinstance(case.selector, tree.Else):
        return "else"
    text = ranges([place for place, one in enumerate(owner) if one == index])
    return f"[{text}]" if "," in text else text


def number_of(file: tree.File, *keys: str) -> int | None:
    """The whole number that the model sets for the first of `keys` that it sets."""
    settings = {setting.key.text: setting.value for setting in model_of(file).settings}
    for key in keys:
        value = settings.get(key)
        if value is not None:
            whole = isinstance(value, tree.Number) and not value.share and isinstance(value.value, int)
            return int(value.value) if whole and isinstance(value, tree.Number) else None
    return None


def _covers(outer: Span, inner: Span) -> bool:
    return outer.source == inner.source and outer.start <= inner.start and inner.end <= outer.end


def _heads_blocks(file: tree.File) -> list[tree.Block]:
    """All `heads { }` of a file, wherever they stand."""
    found: list[tree.Block] = []

    def visit(node: object) -> None:
        if isinstance(node, tree.Block) and node.word.text == "heads":
            found.append(node)
        if isinstance(node, tuple):
            for item in node:
                visit(item)
        elif hasattr(node, "__dataclass_fields__") and not isinstance(node, Span | Source):
            for name in node.__dataclass_fields__:
                visit(getattr(node, name))

    visit(file.items)
    return found
