"""Which KV groups a case of `heads` owns: numbers, ranges, shares that make whole groups, lists, else. In order, each once."""

from __future__ import annotations

from attnc.compiler.origin import one_line
from attnc.compiler.problems import Problems
from attnc.compiler.selectors import ranges
from attnc.dsl import tree
from attnc.dsl.diagnostic import Edit
from attnc.dsl.excerpt import quoted
from attnc.dsl.rules import whole

OTHERS = "add `else: full`, or what they shall do"
EXPECTED = "a KV group, a range, a share, or `else`"


def split(node: tree.Block, kv_heads: int, problems: Problems) -> list[tuple[int, int, int]] | None:
    """(first group, last group, index of the case) in order of groups, covering all, or None after a mistake.

    A share takes the next groups after those of the case before it.
    """
    owner: dict[int, int] = {}
    position = 0
    others: int | None = None
    for index, case in enumerate(node.cases):
        if isinstance(case.selector, tree.Else):
            others = index
            continue
        picked = _picked(case.selector, kv_heads, position, problems)
        if picked is None:
            return None
        twice = [group for group in picked if group in owner]
        if twice:
            notes = [("the first case is here", node.cases[owner[twice[0]]].span)]
            message = f"KV {_shown(twice)} {'has' if len(twice) == 1 else 'have'} two cases"
            left = [group for group in picked if group not in owner]
            written = _written(left)
            leave = f"write `{written}` here" if written else "remove this case"
            help_line = f"{leave}, or take {_shown(twice)} out of the first; query heads that share a KV head stay together"
            fix = written or None
            problems.add("A205", message, case.selector.span, "each KV group in one case", help_line, notes, fix)
            return None
        owner |= dict.fromkeys(picked, index)
        position = picked[-1] + 1
    missing = [group for group in range(kv_heads) if group not in owner]
    if others is not None:
        if not missing:
            message = f"the cases before own all {kv_heads} KV groups, so `else` owns none"
            span, written_case = node.cases[others].selector.span, whole(node.cases[others])
            gone = None if "#" in written_case.text else Edit(written_case, "")
            problems.add("A205", message, span, "a group for each case", "remove the `else`", fix=gone)
            return None
        owner |= dict.fromkeys(missing, others)
    elif missing:
        message = f"KV {_shown(missing)} {'has' if len(missing) == 1 else 'have'} no case"
        problems.add("A206", message, node.word.span, f"cases for KV groups 0 to {kv_heads - 1}", OTHERS)
        return None
    runs: list[tuple[int, int, int]] = []
    for group in range(kv_heads):
        if runs and runs[-1][2] == owner[group]:
            runs[-1] = (runs[-1][0], group, owner[group])
        else:
            runs.append((group, group, owner[group]))
    return runs


def _picked(selector: tree.Selector, kv_heads: int, position: int, problems: Problems) -> list[int] | None:
    match selector:
        case tree.Number(share=True):
            return _share(selector, kv_heads, position, problems)
        case tree.Number():
            group = _group(selector, kv_heads, problems)
            return None if group is None else [group]
        case tree.Range(low=low, high=high):
            ends = (_group(low, kv_heads, problems), _group(high, kv_heads, problems))
            return None if ends[0] is None or ends[1] is None else list(range(ends[0], ends[1] + 1))
        case tree.List(items=items):
            found: list[int] = []
            for item in items:
                part = _picked(item, kv_heads, position, problems)
                if part is None:
                    return None
                found += part
            return sorted(set(found))
        case _:
            shown = quoted(one_line(selector))
            problems.add("A103", f"{shown} does not select heads", selector.span, EXPECTED, "write a range such as `0..3`")
            return None


def _share(number: tree.Number, kv_heads: int, position: int, problems: Problems) -> list[int] | None:
    """The next share of the groups; it must come out even."""
    groups = kv_heads * number.value / 100
    if not 0 < number.value <= 100:
        problems.add("A104", "a share of the KV groups lies in 1% to 100%", number.span, "a share of the groups", "write `50%`")
        return None
    if groups != int(groups):
        message = f"{one_line(number)} of {kv_heads} KV groups is {groups:g}, which is no whole number"
        near = max(1, round(groups))
        fix = f"{100 * near / kv_heads:g}%"
        help_line = f"write `{fix}` for {near} of them, or use numbers"
        problems.add("A207", message, number.span, "a share that makes whole groups", help_line, fix=fix)
        return None
    if position + groups > kv_heads:
        message = f"{one_line(number)} of {kv_heads} KV groups is {int(groups)}, and only {kv_heads - position} left"
        left = kv_heads - position
        expected = f"at most {left} group{'s' * (left != 1)}"
        problems.add("A205", message, number.span, expected, "shares add up to at most 100%")
        return None
    return list(range(position, position + int(groups)))


def _group(number: tree.Number, kv_heads: int, problems: Problems) -> int | None:
    if not number.share and isinstance(number.value, int) and 0 <= number.value < kv_heads:
        return number.value
    message = f"there is no KV group {one_line(number)}: the layer has {kv_heads}"
    help_line = f"write `{kv_heads - 1}`, the last one: `heads` counts KV groups, whose query heads stay together"
    problems.add("A205", message, number.span, f"a KV group from 0 to {kv_heads - 1}", help_line)
    return None


def _written(groups: list[int]) -> str:
    """Groups as a selector: `3`, `2..3`, `[0, 2..3]`."""
    shown = ranges(groups)
    return f"[{shown}]" if "," in shown else shown


def _shown(groups: list[int]) -> str:
    return f"group {groups[0]}" if len(groups) == 1 else f"groups {ranges(groups)}"
