"""What of a spec is decided before building: units, each with its candidates, and the spec in which every one is decided.

A unit is a part of a layer with weights of its own (a branch of `+`, `>>` or `gate`, or the whole layer) that holds a `choose`
or a number that a `budget` moves. It is decided for each KV group, or for all of them at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import combinations, product
from typing import NamedTuple

from attnc.compiler.budget_text import Site, sites, with_values
from attnc.compiler.check import check
from attnc.compiler.full import full
from attnc.compiler.previous import held, makes_choice, takes_choice
from attnc.compiler.spec import (
    BudgetSite,
    HeadCase,
    Heads,
    Mixer,
    Spec,
)
from attnc.compiler.tuning import Method
from attnc.compiler.unbuilt import unbuilt_names
from attnc.compiler.unit_parts import chooses, chooses_met, onto, pieces, resolved, with_pieces
from attnc.compiler.walk import attentions, first_leaf
from attnc.dsl import tree
from attnc.dsl.diagnostic import SpecError
from attnc.dsl.parse import parse
from attnc.dsl.source import Source

MOST = 64
"""Candidates of a unit: more are no table that anybody measures."""

Words = tuple[tuple[str, str], ...]
Numbers = tuple[tuple[str, float], ...]


class Candidate(NamedTuple):
    """What one unit may be: an alternative for each `choose` in it, and a number for each budget that matters then.

    `full`: a softmax over every key instead, which losses are compared with; no result of tuning.
    """

    choose: Words = ()
    budgets: Numbers = ()
    full: bool = False

    @property
    def name(self) -> str:
        """In tables and journals: `streaming window.n=64`."""
        words = [name for _, name in self.choose] + [f"{short(path)}={number:g}" for path, number in self.budgets]
        return "full attention" if self.full else " ".join(words)


FULL = Candidate(full=True)
Place = tuple[int, str]
"""Layer and scope of a unit."""


class Unit(NamedTuple):
    """A unit of one layer; the first of its candidates is what the spec says by itself."""

    layer: int
    scope: str
    kv_heads: int
    per: str
    candidates: tuple[Candidate, ...]
    by: Method | None = None

    @property
    def place(self) -> Place:
        """What no two units share."""
        return (self.layer, self.scope)

    @property
    def ends(self) -> tuple[Candidate, Candidate]:
        """The first alternative and the last, with their budgets at the defaults."""
        last = self.candidates[-1].choose
        return self.candidates[0], next(one for one in self.candidates if one.choose == last)

    @property
    def groups(self) -> tuple[tuple[int, int], ...]:
        """First and last KV group of each of its decisions."""
        return tuple((g, g) for g in range(self.kv_heads)) if self.per == "head" else ((0, self.kv_heads - 1),)


class TooManyError(ValueError):
    """A unit has more candidates than can be measured."""


def short(path: str) -> str:
    """The end of a budget's path, which says enough in a table."""
    return ".".join(path.split(".")[-2:])


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a spec. `points`: values that each budget may take; its ends and its default are among them."""

    spec: Spec
    points: int = 4

    @cached_property
    def text(self) -> Spec:
        """The spec as its canonical text says it, which is what other values of budgets are compared with."""
        return check(self.tree) if self.sites else self.spec

    @cached_property
    def tree(self) -> tree.File:
        """The syntax tree of the canonical text."""
        return parse(Source(self.spec.file, self.spec.text))

    @cached_property
    def sites(self) -> dict[str, Site]:
        """The budgets that may move, by path."""
        return {site.path: site for site in sites(self.tree, check(self.tree))} if self.spec.budgets else {}

    @cached_property
    def shared(self) -> dict[str, tuple[float, ...]]:
        """The budgets that are one number for all layers, and the values that they may take."""
        return {path: self.values(site) for path, site in self.sites.items() if not site.per}

    def values(self, site: Site) -> tuple[float, ...]:
        """Those that the checker takes, the default first: the ends, and some between, even by ratio."""
        wanted = [site.default, site.low, site.high]
        steps = max(2, self.points) - 1
        for at in range(1, steps):
            low, high = max(site.low, 1 if site.whole else 1e-9), max(site.high, 1e-9)
            between = low * (high / low) ** (at / steps)
            wanted.append(_rounded(between) if site.whole else float(f"{between:.3g}"))
        inside = [one for one in dict.fromkeys(wanted) if site.low <= one <= site.high]
        return tuple(one for one in inside if one == site.default or self._checked({site.path: one}) is not None)

    def all(self) -> tuple[Unit, ...]:
        """Every unit, layer by layer. Raises TooManyError."""
        known: dict[int, list[tuple[str, int, str, Method | None, tuple[Candidate, ...]]]] = {}
        for layer in self.text.layers:
            if id(layer.mixer) not in known:
                known[id(layer.mixer)] = [
                    (scope, _kv_heads(mixer), *self._candidates(layer.index, scope, mixer))
                    for scope, mixer in pieces(layer.mixer)
                ]
        found = []
        for at, layer in enumerate(self.text.layers):
            lent = any(attentions(before.mixer) for before in self.text.layers[:at])
            for scope, kv_heads, per, by, candidates in known[id(layer.mixer)]:
                place = (layer.index, scope)
                if len(candidates) > 1:
                    own = tuple(one for one in candidates if lent or not self.borrows(place, one))
                    found.append(Unit(*place, kv_heads, per, own, by))
        return tuple(found)

    def tied(self, unit: Unit) -> str:
        """Why heads of a unit cannot differ though each is decided by itself: what of that is not built; else empty."""
        if unit.per != "head":
            return ""
        key = (unit.scope, unit.candidates, id(self.text.layers[unit.layer].mixer))
        if key not in self._tied:
            several = {one.choose: one for one in reversed(unit.candidates)}.values()
            mixed = (
                self.settled({unit.place: [one] + [other] * (unit.kv_heads - 1)}) for one, other in combinations(several, 2)
            )
            self._tied[key] = next((names[0] for spec in mixed if (names := unbuilt_names(spec))), "")
        return self._tied[key]

    @cached_property
    def _tied(self) -> dict[tuple[object, ...], str]:
        return {}

    def borrows(self, place: Place, candidate: Candidate) -> bool:
        """Whether a candidate takes over the choice of an earlier layer, so that one has to make a choice."""
        keys = [key for one in held(self.mixer(place, candidate)) for key in one.keys]
        return any(map(takes_choice, keys)) and not any(map(makes_choice, keys))

    def undecided(self) -> int:
        """How many parts of layers have a `choose`, or a budget that may move; their candidates are not made."""
        known: dict[int, int] = {}
        for layer in self.text.layers:
            if id(layer.mixer) not in known:
                known[id(layer.mixer)] = sum(
                    any(chooses(mixer)) or any(self._moves(path, layer.index, scope, mixer) for path in self.sites)
                    for scope, mixer in pieces(layer.mixer)
                )
        return sum(known[id(layer.mixer)] for layer in self.text.layers)

    def _candidates(self, layer: int, scope: str, mixer: Mixer) -> tuple[str, Method | None, tuple[Candidate, ...]]:
        """(per, by, candidates), each of them another mixer."""
        decisions = dict(chooses(mixer))
        moving = {path: self.values(site) for path, site in self.sites.items() if self._moves(path, layer, scope, mixer)}
        count = 1
        for size in [*(len(one.alternatives) for one in decisions.values()), *map(len, moving.values())]:
            count *= size
        if count > 16 * MOST:
            raise TooManyError(f"layer {layer} has {count} candidates")
        found: dict[Mixer, Candidate] = {}
        for words in product(*([one.name for one in choose.alternatives] for choose in decisions.values())):
            for numbers in product(*moving.values()):
                self._add(
                    found, layer, scope, dict(zip(decisions, words, strict=True)), dict(zip(moving, numbers, strict=True))
                )
        if len(found) > MOST:
            raise TooManyError(f"layer {layer} has {len(found)} candidates")
        by = {choose.per for choose in decisions.values()} | {self.sites[path].per for path in moving if self.sites[path].per}
        written = [choose.by for choose in decisions.values()] + [self._written[path].by for path in moving]
        methods = [one for one in written if one is not None]
        return ("head" if by == {"head"} else "layer"), next(iter(methods), None), tuple(found.values())

    @cached_property
    def _written(self) -> dict[str, BudgetSite]:
        return {site.path: site for site in self.text.budgets}

    def _add(
        self, found: dict[Mixer, Candidate], layer: int, scope: str, words: Mapping[str, str], numbers: Mapping[str, float]
    ) -> None:
        """The candidate, if the checker takes it and none before it is the same mixer."""
        spec = self._checked(numbers)
        if spec is None:
            return
        made = resolved(dict(pieces(spec.layers[layer].mixer))[scope], words)
        if made in found:
            return
        default = {path: self.sites[path].default for path in numbers}
        matter = []
        for path, number in numbers.items():
            other = next(one for one in self.values(self.sites[path]) if one != number) if self._varies(path) else number
            moved = self._checked({**numbers, path: other})
            differs = moved is not None and resolved(dict(pieces(moved.layers[layer].mixer))[scope], words) != made
            if differs or number != default[path]:
                matter.append((path, number))
        met = {path for path, _ in chooses_met(dict(pieces(self.text.layers[layer].mixer))[scope], words)}
        found[made] = Candidate(tuple((path, word) for path, word in words.items() if path in met), tuple(matter))

    def _varies(self, path: str) -> bool:
        return len(self.values(self.sites[path])) > 1

    def _moves(self, path: str, layer: int, scope: str, mixer: Mixer) -> bool:
        """Whether a budget stands in this part of the layer."""
        site = self.sites[path]
        for number in self.values(site)[1:]:
            spec = self._checked({path: number})
            if spec is not None and dict(pieces(spec.layers[layer].mixer)).get(scope) != mixer:
                return True
        return False

    def takes(self, candidate: Candidate) -> bool:
        """Whether the candidate's budgets lie in their ranges and pass the checker."""
        inside = all(self.sites[path].low <= number <= self.sites[path].high for path, number in candidate.budgets)
        return inside and self._checked(dict(candidate.budgets)) is not None

    def _checked(self, numbers: Mapping[str, float]) -> Spec | None:
        """The spec with other values of its budgets; None where the checker refuses them."""
        moved = tuple(sorted((path, one) for path, one in numbers.items() if one != self.sites[path].default))
        if not moved:
            return self.text
        if moved not in self._known:
            try:
                self._known[moved] = check(with_values(self.tree, {self.sites[path].number: one for path, one in moved}))
            except SpecError:
                self._known[moved] = None
        return self._known[moved]

    @cached_property
    def _known(self) -> dict[Numbers, Spec | None]:
        return {}

    def settled(self, picks: Mapping[Place, Sequence[Candidate]]) -> Spec:
        """The spec with every unit decided: one candidate for each of its KV groups, or FULL."""
        known: dict[tuple[int, tuple[object, ...]], Mixer] = {}
        layers = []
        for layer in self.text.layers:
            scopes = [scope for scope, _ in pieces(layer.mixer)]
            key = id(layer.mixer), tuple(tuple(picks.get((layer.index, scope), ())) for scope in scopes)
            if key not in known:
                made = {scope: self._decided(layer.index, scope, picks) for scope in scopes if (layer.index, scope) in picks}
                known[key] = with_pieces(layer.mixer, made)
            layers.append(replace(layer, mixer=known[key]))
        return replace(self.text, layers=tuple(layers), budgets=())

    def _decided(self, layer: int, scope: str, picks: Mapping[Place, Sequence[Candidate]]) -> Mixer:
        made = [self.mixer((layer, scope), candidate) for candidate in picks[layer, scope]]
        if all(one == made[0] for one in made):
            return made[0]
        own = [onto(one, group) for group, one in enumerate(made)]
        cases: list[HeadCase] = []
        for group, one in enumerate(own):
            if cases and cases[-1].mixer == one:
                cases[-1] = replace(cases[-1], last=group)
            else:
                cases.append(HeadCase(first=group, last=group, mixer=one))
        return Heads(cases=tuple(cases))

    def mixer(self, place: Place, candidate: Candidate) -> Mixer:
        """What a unit is with this candidate."""
        layer, scope = place
        spec = self._checked(dict(candidate.budgets))
        assert spec is not None, "candidates were checked"
        found = dict(pieces(spec.layers[layer].mixer))[scope]
        if candidate.full:
            return full(found) if attentions(found) else resolved(found, {})
        return resolved(found, dict(candidate.choose))


def _kv_heads(mixer: Mixer) -> int:
    leaf = first_leaf(mixer)
    return leaf.attributes.kv_heads or 1


def _rounded(number: float) -> int:
    """The nearest of the numbers that blocks and windows are made of: powers of two, and three quarters of them."""
    step = 1
    while step * 8 <= number:
        step *= 2
    return round(number / step) * step
