"""Where reading stands, and what it returns after a mistake."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final, Protocol

from attnc.compiler.mixer import Kind
from attnc.compiler.problems import Problems
from attnc.compiler.spec import BudgetSite
from attnc.dsl import tree
from attnc.dsl.format import print_expression
from attnc.dsl.source import Span


class Invalid:
    """What reading returns after it reported a mistake."""


INVALID: Final = Invalid()


class Mixes(Protocol):
    """The mixes defined so far, for arguments that are key sets themselves."""

    def keys(self, value: tree.Expression, place: Place) -> tuple[Kind, ...] | Invalid:
        """The union that `value` writes, or INVALID after reporting that it is none."""

    def kinds(self, word: str) -> tuple[Kind, ...]:
        """The union that the mix `word` is; empty where there is no such mix, or it is something else."""


@dataclass(frozen=True)
class Place:
    """The problems and budgets collected so far (a budget once, however often it is used), and the path for budget sites."""

    problems: Problems
    budgets: dict[Span, BudgetSite] = field(default_factory=dict)
    path: tuple[str, ...] = ()
    mixes: Mixes | None = None

    def at(self, *steps: str) -> Place:
        """The place further in."""
        return replace(self, path=self.path + steps)


def step(selector: tree.Selector, index: int) -> str:
    """A case's step in the path of a budget: `else`, `retrieval`, `every`, `0..3`, or its number."""
    match selector:
        case tree.Else():
            return "else"
        case tree.Name(text=text) | tree.Call(name=tree.Name(text=text)):
            return text
        case tree.Number() | tree.Range():
            return print_expression(selector)
        case _:
            return f"case_{index}"


def named(owner: str) -> str:
    """`` `window` `` for a word of the language, and a phrase as it is."""
    return owner if " " in owner else f"`{owner}`"
