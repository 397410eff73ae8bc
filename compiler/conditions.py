"""The conditions of `when`: length, phase or dim, compared with a number or a phase. `dim` is decided here."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, Final, cast

from attnc.compiler.declare import Bounds, Budgeted
from attnc.compiler.fields import Field
from attnc.compiler.origin import one_line
from attnc.compiler.place import Invalid, Place
from attnc.compiler.problems import nearest, words
from attnc.compiler.read_value import read
from attnc.compiler.spec import PHASES, Condition, Sign
from attnc.dsl import tree
from attnc.dsl.excerpt import quoted

EXPECTED = "`length` or `dim` and a number, or `phase == train`, `prefill` or `decode`"
SUBJECTS = ("length", "phase", "dim")
FLIPPED: Final = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
TESTS: dict[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
}
NUMBER = Field(
    key="length",
    name="length",
    types=(int,),
    bounds=Bounds(0, 2**24),
    budgeted=Budgeted("tuned"),
    divides=None,
    not_built=None,
    positional=False,
    required=True,
    default=None,
)


def read_condition(selector: tree.Selector, dim: int, place: Place) -> Condition | bool | None:
    """The condition; True or False where `dim` decides it; None after a mistake."""
    if not isinstance(selector, tree.Compare):
        message = f"{quoted(one_line(selector))} is not a condition"
        phase = f"phase == {selector.text}" if isinstance(selector, tree.Name) and selector.text in PHASES else ""
        help_line = f"write `{phase}`" if phase else "write `length < 8192`, or `else`"
        place.problems.add("A211", message, selector.span, EXPECTED, help_line, fix=phase or None)
        return None
    left, sign, right = selector.left, selector.operator, selector.right
    if not _is(left, ("length", "phase")) and _is(right, SUBJECTS):
        left, sign, right = right, FLIPPED[sign], left
    if not isinstance(left, tree.Name) or left.text not in SUBJECTS:
        word = left.text if isinstance(left, tree.Name) else one_line(left)
        help_line = nearest(word, SUBJECTS, f"compare one of {words(SUBJECTS)}")
        place.problems.add("A211", f"a condition cannot test {quoted(word)}", left.span, EXPECTED, help_line)
        return None
    if left.text == "phase":
        return _phase(sign, right, selector, place)
    if _is(right, ("dim",)):
        number = dim
    else:
        typed = read(right, NUMBER, "a condition", place)
        if isinstance(typed, Invalid):
            return None
        number = int(typed)
    if left.text == "dim":
        return TESTS[sign](dim, number)
    return Condition(left="length", operator=cast("Sign", sign), right=number)


def _is(value: tree.Value, names: tuple[str, ...]) -> bool:
    return isinstance(value, tree.Name) and value.text in names


def _phase(sign: str, right: tree.Value, selector: tree.Compare, place: Place) -> Condition | None:
    if sign != "==" or not isinstance(right, tree.Name) or right.text not in PHASES:
        word = right.text if isinstance(right, tree.Name) else ""
        help_line = f"write `phase == {word}`" if word in PHASES else nearest(word, PHASES, "write `phase == decode`")
        span = right.span if sign == "==" else selector.span
        place.problems.add("A211", "`phase` is compared with `==` to a phase", span, f"one of {words(PHASES)}", help_line)
        return None
    return Condition(left="phase", operator="==", right=right.text)
