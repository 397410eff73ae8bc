"""Where reading stands, and what it returns after a mistake."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from attnc.compiler.problems import Problems
from attnc.compiler.spec import BudgetSite


class Invalid:
    """What reading returns after it reported a mistake."""


INVALID: Final = Invalid()


@dataclass(frozen=True)
class Place:
    """The problems and budgets collected so far, and the path for budget sites (`layers.all.sink`)."""

    problems: Problems
    budgets: list[BudgetSite] = field(default_factory=list)
    path: tuple[str, ...] = ()

    def at(self, *steps: str) -> Place:
        """The place further in."""
        return replace(self, path=self.path + steps)


def named(owner: str) -> str:
    """`` `window` `` for a word of the language, and a phrase as it is."""
    return owner if " " in owner else f"`{owner}`"
