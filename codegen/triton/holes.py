"""The holes whose text follows from how many parts a row of numbers holds.

The order of a row: sink; align, shift, back, ahead of each near interval; the strides; the powers of two. What the numbers
mean is said in compiler/intervals.py.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass

from attnc.compiler.families import Softmax

NearNames = tuple[str, str, str, str]
LINE = 124
"""Characters of a line in a function."""


def made_holes(kernel: Softmax, by_products: bool = False) -> dict[str, str]:
    """The text of each such hole, by its name. `by_products`: positions are divided by units of powers without divisions."""
    names = Names.of(kernel, by_products)
    holes = {
        "read_row": _read_row(names),
        "lower": _near("lower", "The first key near query i that it sees.", names, "tl.minimum", _begin, "i + NOWHERE"),
        "upper": _near("upper", "One past the last key near query i that it sees.", names, "tl.maximum", _end, "i - NOWHERE"),
        "horizon": _horizon(kernel.causal),
        "seen_from": _seen_from(names, kernel.causal),
        "seen_until": _near("seen_until", _SEEN_UNTIL, names, "tl.maximum", _seen_until_near, "j - NOWHERE", "j"),
        "keep": _keep(names, kernel.causal),
        "solid": _solid(names),
    }
    if kernel.causal:
        holes["upper"] = _function("upper(numbers, i)", "One past the last key near query i that it sees.", ["return i + 1"])
    if kernel.far:
        holes |= {"far_part": _far_part(names), "reads": _reads(names)}
    if kernel.exponent:
        holes |= {"power": _power(kernel.exponent), "root_grad": _root_grad(kernel.exponent)}
    return holes if kernel.chunks is None else holes | _chunks(names, *kernel.chunks)


@dataclass(frozen=True)
class Names:
    """Names of a row's numbers, without an index where there is one part of a sort; behind them, where `by_products`, what
    `divided` takes for the unit of each power.
    """

    nears: tuple[NearNames, ...]
    strides: tuple[str, ...]
    powers: tuple[str, ...]
    by_products: bool = False

    @classmethod
    def of(cls, kernel: Softmax, by_products: bool = False) -> Names:
        """The names for a kernel."""

        def tails(count: int) -> tuple[str, ...]:
            return ("",) if count == 1 else tuple(f"_{index}" for index in range(count))

        return cls(
            tuple((f"align{tail}", f"shift{tail}", f"back{tail}", f"ahead{tail}") for tail in tails(kernel.nears)),
            tuple(f"stride{tail}" for tail in tails(kernel.strides)),
            tuple(f"power{tail}" for tail in tails(kernel.powers)),
            by_products and kernel.powers > 0,
        )

    @property
    def far(self) -> tuple[str, ...]:
        """The strides and the powers."""
        return (*self.strides, *self.powers)

    @property
    def all(self) -> tuple[str, ...]:
        """All names in the row's order."""
        return ("sink", *(name for near in self.nears for name in near), *self.far)

    @property
    def dividers(self) -> tuple[tuple[str, str], ...]:
        """Of each power, where positions are divided by products."""
        names = (power.replace("power", "") for power in self.powers)
        return tuple((f"factor{tail}", f"places{tail}") for tail in names) if self.by_products else ()

    @property
    def unpack(self) -> str:
        """The line that names a row's numbers."""
        return f"{_listed((*self.all, *(name for pair in self.dividers for name in pair)))} = numbers"

    def unit_of(self, power: str) -> tuple[list[str], Callable[[str], str]]:
        """Lines that prepare a power's unit, and the text of a position divided by it."""
        if not self.by_products:
            return [f"unit = tl.maximum({power}, 1)"], lambda x: f"{x if x.isidentifier() else f'({x})'} // unit"
        factor, places = self.dividers[self.powers.index(power)]
        return [], lambda x: f"divided({x}, {factor}, {places})"


def _listed(items: tuple[str, ...]) -> str:
    """`a, b`, or in brackets where that is long or needs them."""
    if len(items) == 1:
        return f"({items[0]},)"
    lines = [""]
    for item in items:
        if len(lines[-1]) + len(item) > 110:
            lines.append("")
        lines[-1] += f"{item}, "
    if len(lines) == 1:
        return lines[0].removesuffix(", ")
    return "\n".join(["(", *(f"    {line.rstrip()}" for line in lines), ")"])


def _function(signature: str, doc: str, body: list[str]) -> str:
    return "\n".join(["@triton.jit", f"def {signature}:", textwrap.indent("\n".join([f'"""{doc}"""', *body]), "    ")])


DIVIDING = '''@triton.jit
def divider(unit):
    """(factor, places) with which `divided` divides by a unit: the factor is the next number above 2^(30 + places) / unit."""
    places = 0
    while (1 << places) < unit:
        places += 1
    one = unit.to(tl.int64) * 0 + NOWHERE
    return (one << places) // unit + 1, places


@triton.jit
def divided(x, factor, places):
    """x // unit, exact for 0 <= x < NOWHERE (Granlund and Montgomery, PLDI 1994, theorem 4.2)."""
    return ((x.to(tl.int64) * factor) >> (30 + places)).to(tl.int32)'''


def _read_row(names: Names) -> str:
    loads = tuple("tl.load(row)" if index == 0 else f"tl.load(row + {index})" for index in range(len(names.all)))
    doc = "The numbers of one sequence and KV head."
    if not names.by_products:
        return _function("read_row(row)", doc, [f"return {_listed(loads)}"])
    pairs = zip(names.powers, names.dividers, strict=True)
    found = [f"{factor}, {places} = divider(tl.maximum({power}, 1))" for power, (factor, places) in pairs]
    row = _listed((*names.all, *(name for pair in names.dividers for name in pair)))
    reading = [f"{_listed(names.all)} = {_listed(loads)}"]
    if len(reading[0]) > LINE and "\n" not in reading[0]:
        reading = [f"numbers = {_listed(loads)}", f"{_listed(names.all)} = numbers"]
    made = _function("read_row(row)", doc, [*reading, *found, f"return {row}"])
    return f"{DIVIDING}\n\n\n{made}"


def _begin(near: NearNames) -> str:
    align, shift, back, _ = near
    return f"(i + {shift}) // {align} * {align} - {shift} - {back}"


def _end(near: NearNames) -> str:
    align, shift, _, ahead = near
    return f"((i + {shift}) // {align} + 1) * {align} - {shift} + {ahead}"


def _near(
    name: str, doc: str, names: Names, function: str, term: Callable[[NearNames], str], nothing: str, of: str = "i"
) -> str:
    """The least begin or greatest end of the near intervals: all hold the query, so together they are one interval."""
    terms = [term(near) for near in names.nears]
    if not terms:
        return _function(f"{name}(numbers, {of})", doc, [f"return {nothing}"])
    if len(terms) == 1:
        return _function(f"{name}(numbers, {of})", doc, [names.unpack, f"return {terms[0]}"])
    rest = [f"bound = {function}(bound, {text})" for text in terms[1:]]
    return _function(f"{name}(numbers, {of})", doc, [names.unpack, f"bound = {terms[0]}", *rest, "return bound"])


_SEEN_UNTIL = "One past the last query near key j that sees it."


def _seen_until_near(near: NearNames) -> str:
    align, shift, back, _ = near
    return f"((j + {shift} + {back}) // {align} + 1) * {align} - {shift}"


def _seen_from(names: Names, causal: bool) -> str:
    doc = "The first query that sees key j, and no later one than for the next key."
    if causal:
        return _function("seen_from(numbers, j)", doc, ["return j"])
    terms = [f"tl.maximum(j + {shift} - {ahead}, 0) // {align} * {align} - {shift}" for align, shift, _, ahead in names.nears]
    bounds = [f"bound = tl.minimum(bound, {term})" for term in terms]
    return _function(
        "seen_from(numbers, j)", doc, [names.unpack, "bound = j", *bounds, "return tl.where(j < sink, -NOWHERE, bound)"]
    )


def _horizon(causal: bool) -> str:
    doc = "One past the last key that causality shows to query i."
    return _function("horizon(i)", doc, ["return i + 1" if causal else "return NOWHERE"])


def _keep(names: Names, causal: bool) -> str:
    body = [names.unpack, "seen = j < sink"]
    if names.nears:
        body.append(f"seen |= {'j >= lower(numbers, i)' if causal else '(j >= lower(numbers, i)) & (j < upper(numbers, i))'}")
    for name in names.strides:
        body += [f"step = tl.maximum({name}, 1)", f"seen |= ({name} > 0) & (i % step == j % step)"]
    for name in names.powers:
        unit, by = names.unit_of(name)
        body += [*unit, f"apart = tl.abs({by('i')} - {by('j')})"]
        body += [f"seen |= ({name} > 0) & (apart & (apart - 1) == 0)"]
    body.append(f"return seen & ({'j <= i' if causal else 'j < NOWHERE'})")
    return _function("keep(numbers, i, j)", "Whether the query at i sees the key at j.", body)


def _solid(names: Names) -> str:
    """A block of one far interval lies in it as a whole, or not at all."""
    body = [names.unpack] if names.powers else []
    body += ["whole = end <= numbers[0]", "whole |= (begin >= lower(numbers, last)) & (end <= upper(numbers, first))"]
    for name in names.powers:
        unit, by = names.unit_of(name)
        body += [*unit, f"apart = tl.abs({by('first')} - {by('begin')})"]
        queries, keys = f"({by('first')} == {by('last')})", f"({by('begin')} == {by('end - 1')})"
        body += [f"alone = {queries}", f"alone &= {keys}"] if names.by_products else [f"alone = {queries} & {keys}"]
        body += [f"whole |= ({name} > 0) & alone & (apart & (apart - 1) == 0)"]
    doc = "Whether all queries first..last see all keys from begin up to, not including, end."
    return _function("solid(numbers, first, last, begin, end)", doc, [*body, "return whole & (end <= horizon(first))"])


def _reads(names: Names) -> str:
    return _function(
        "reads(numbers, first, base, slots, whole)",
        "About how many slots the queries from `first` on read: only shares of the work follow from it.",
        [
            names.unpack,
            "near = tl.maximum(slots - tl.maximum(lower(numbers, first) - base, 0), 0)",
            *(f"whole |= {name} > 0" for name in names.far),
            "return tl.where(whole, slots, tl.minimum(near + tl.maximum(numbers[0] - base, 0), slots))",
        ],
    )


def _far_part(names: Names) -> str:
    return _function(
        "far_part(numbers)",
        "The far pattern's unit, whether its distances double, and how many patterns there are.",
        [
            names.unpack,
            f"unit = {' + '.join(names.far)}",  # where one pattern is active, the others are 0
            f"doubling = {' + '.join(names.powers)} > 0" if names.powers else "doubling = unit < 0  # never",
            f"patterns = ({names.far[0]} > 0).to(tl.int32)",
            *(f"patterns += ({name} > 0).to(tl.int32)" for name in names.far[1:]),
            "return unit, doubling, patterns",
        ],
    )


def _chunks(names: Names, span: int, step: int) -> dict[str, str]:
    """The holes of keys that stand for chunks: key j for tokens j step up to, not including, j step + span.

    A chunk of which no token is shown begins behind the first tokens and ends before the near ones.
    """
    loads = ["tl.load(row) * 0", f"(tl.load(row) + {step - 1}) // {step}"]
    loads += [f"tl.load(row + {index})" for index in range(1, len(names.all))]
    unpack = f"{_listed(('nothing', 'begin', *names.all[1:]))} = numbers"
    ends = [f"end = tl.minimum(end, {_begin(near)})" for near in names.nears]
    count = f"return tl.maximum(end - {span - step}, 0) // {step}"
    both = "(j >= lower(numbers, i)) & (j < upper(numbers, i))"
    within = "(begin >= lower(numbers, last)) & (end <= upper(numbers, first))"
    return {
        "read_row": _function(
            "read_row(row)", "No first keys, the first chunk, and the row's other numbers.", [f"return {_listed(tuple(loads))}"]
        ),
        "lower": _function("lower(numbers, i)", "The first chunk of which no first token is shown.", [unpack, "return begin"]),
        "upper": _function(
            "upper(numbers, i)",
            "One past the last chunk that query i has read whole, and of which no near token is shown.",
            [*([unpack] if ends else []), "end = i + 1", *ends, count],
        ),
        "keep": _function("keep(numbers, i, j)", "Whether the query at i sees the chunk j.", [f"return {both}"]),
        "solid": _function(
            "solid(numbers, first, last, begin, end)",
            "Whether all queries first..last see all chunks from begin up to, not including, end.",
            [f"return {within}"],
        ),
        "seen_from": _function(
            "seen_from(numbers, j)", "A query before which none sees chunk j.", [f"return j * {step} + {span - 1}"]
        ),
        "seen_until": _function("seen_until(numbers, j)", "No query is the last one.", ["return j * 0 + NOWHERE"]),
    }


def _power(exponent: float) -> str:
    """By products for the whole part of the exponent, which round less than a logarithm times it; by one for the rest."""
    whole, rest = int(exponent), exponent % 1
    body, factors, reached = [], [], 1
    while reached <= whole:
        if whole & reached:
            factors.append(f"x{reached}")
        reached *= 2
        if reached <= whole:
            body.append(f"x{reached} = x{reached // 2} * x{reached // 2}")
    if rest:
        factors.append(f"tl.exp2({rest!r} * tl.log2(tl.where(x1 == 0.0, 1.0, x1)))")
    return _function("power(x1)", f"x^{exponent:g}.", [*body, f"return {' * '.join(factors)}"])


def _root_grad(exponent: float) -> str:
    doc = f"The gradient of x, from that of the logarithm of x^{exponent:g}."
    return _function(
        "root_grad(grad, x)", doc, [f"return tl.where(x == 0.0, 0.0, grad * {exponent!r} / tl.where(x == 0.0, 1.0, x))"]
    )
