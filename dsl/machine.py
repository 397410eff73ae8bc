"""An LALR(1) parser that is fed word by word, and whose stack may be cut back: what recovery from mistakes needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

from attnc.dsl.words import Word

END = "$END"


class Row(list[Any]):
    """What a repeated part of a rule has read so far: entries with what stands between them."""


class Rule(NamedTuple):
    """`size` symbols become one `origin`; `build` makes its value. `single`: one value alone stays what it is."""

    origin: str
    size: int
    single: bool
    build: Callable[[list[Any]], Any] | None


@dataclass(frozen=True)
class Table:
    """`states[state][symbol]`: the state to go to, or -1 minus the number of the rule that is complete.

    `leaves` makes values of words; `end` is the state in which the text may end.
    """

    states: list[dict[str, int]]
    rules: list[Rule]
    leaves: Mapping[str, Callable[[Word], Any]]
    end: int


class Machine:
    """`states` has one state more than `values`: each value stands above the state in which it was begun."""

    def __init__(self, table: Table) -> None:
        self.table = table
        self.states = [0]
        self.values: list[Any] = []

    def feed(self, word: Word) -> bool:
        """Read a word; False if it does not fit, which changes nothing. After the end, the text's value is the last one."""
        action = self.table.states[self.states[-1]].get(word.type)
        if action is None or (action < 0 and not self.fits(word.type)):
            return False
        while True:
            action = self.table.states[self.states[-1]][word.type]
            if action >= 0:
                leaf = self.table.leaves.get(word.type)
                self.states.append(action)
                self.values.append(leaf(word) if leaf else word)
                return True
            self._reduce(self.table.rules[-1 - action])
            if word.type == END and self.states[-1] == self.table.end:
                return True

    def fits(self, symbol: str) -> bool:
        """Whether a word of this sort can stand here."""
        table, depth, above = self.table, len(self.states), [self.states[-1]]
        while True:
            action = table.states[above[-1]].get(symbol)
            if action is None:
                return False
            if action >= 0:
                return True
            rule = table.rules[-1 - action]
            # `above` are the states above the first `depth` of the stack, which stays as it is.
            if rule.size < len(above):
                del above[len(above) - rule.size :]
            else:
                depth -= rule.size - len(above) + 1
                above = [self.states[depth - 1]]
            above.append(table.states[above[-1]][rule.origin])
            if symbol == END and above[-1] == table.end:
                return True

    def choices(self) -> Set[str]:
        """The symbols that this state knows; some of them may not fit after all."""
        return self.table.states[self.states[-1]].keys()

    def accepts(self) -> set[str]:
        """The sorts of words that can stand here."""
        return {symbol for symbol in self.choices() if symbol.isupper() and self.fits(symbol)}

    def _reduce(self, rule: Rule) -> None:
        values = self.values[-rule.size :]
        del self.states[-rule.size :], self.values[-rule.size :]
        self.states.append(self.table.states[self.states[-1]][rule.origin])
        if rule.single and rule.size == 1:
            self.values.append(values[0])
        elif rule.origin.startswith("__"):
            # A row grows in place: nobody else holds it, and copying it for each entry would be quadratic.
            row = values.pop(0) if isinstance(values[0], Row) else Row()
            row += values
            self.values.append(row)
        else:
            assert rule.build is not None, f"no method builds {rule.origin}"
            inside = (value if isinstance(value, Row) else (value,) for value in values)
            self.values.append(rule.build([child for part in inside for child in part]))
