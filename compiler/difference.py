"""What two specs do differently: their resolved tables, models, budgets, caches and laws, not their texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from attnc.compiler.laws import laws
from attnc.compiler.print_value import print_value
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import BudgetSite, Chain, Choose, Gate, Mixer, Route, Select, Spec, Sum
from attnc.compiler.table import TableRow, table
from attnc.compiler.value import Value
from attnc.compiler.walk import children


class Changed(Value):
    """One thing by its name: how it is in the first spec and in the second, empty where it is not there."""

    name: str
    before: str
    after: str


class ChangedLayers(Value):
    """Layers that change alike: the rows of each before and after, none where a spec has no such layer."""

    layers: tuple[int, ...]
    before: tuple[str, ...]
    after: tuple[str, ...]


class Difference(Value):
    """What `attnc diff --json` prints, and from what `same` follows."""

    schema_version: int = 1
    same: bool
    model: tuple[Changed, ...]
    layers: tuple[ChangedLayers, ...]
    budgets: tuple[Changed, ...]
    recipe: tuple[Changed, ...]
    driver: tuple[Changed, ...]
    cache: tuple[Changed, ...]
    laws: tuple[Changed, ...]


def difference(before: Spec, after: Spec, dtype: str = "bfloat16") -> Difference:
    """What is not equal; `dtype` is the caches' number format."""
    model = _changed(_model(before), _model(after))
    layers = _layers(_rows(before), _rows(after))
    budgets = _changed(dict(map(_budget, before.budgets)), dict(map(_budget, after.budgets)))
    recipe = _changed(_settings(before.recipe), _settings(after.recipe))
    driver = _changed(_settings(before.driver), _settings(after.driver))
    cache = _changed(_cache(before, dtype), _cache(after, dtype))
    owed = _changed(_owed(before), _owed(after))
    return Difference(
        same=not (model or layers or budgets or recipe or driver or cache or owed),
        model=model,
        layers=layers,
        budgets=budgets,
        recipe=recipe,
        driver=driver,
        cache=cache,
        laws=owed,
    )


def _changed(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[Changed, ...]:
    names = dict.fromkeys((*before, *after))
    pairs = [Changed(name=name, before=before.get(name, ""), after=after.get(name, "")) for name in names]
    return tuple(one for one in pairs if one.before != one.after)


def _model(spec: Spec) -> dict[str, str]:
    """The model's settings as a spec writes them, and the attributes that it gives to all mixers."""
    model, ffn, norm = spec.model, spec.model.feed_forward, spec.model.norm
    centre = f", centre = {norm.centre}" if norm.centre else ""
    own = {
        "ffn": f"{ffn.kind}({ffn.width})" if ffn else "none",
        "norm": f"{norm.kind}({print_value(norm.epsilon)}{centre})",
    }
    rest = {name: value for name, value in _settings(model).items() if name not in ("feed_forward", "norm")}
    return rest | own | _settings(spec.defaults)


def _settings(value: Value | None) -> dict[str, str]:
    return {} if value is None else {name: print_value(one) for name, one in vars(value).items()}


def _budget(site: BudgetSite) -> tuple[str, str]:
    unit = "%" if site.share else ""
    per = f", per {site.per}" if site.per else ""
    by = f", by {print_value(site.by)}" if site.by else ""
    low, high, default = (f"{print_value(float(number))}{unit}" for number in (site.low, site.high, site.default))
    return site.path, f"{low}..{high}, default {default}, {site.when}{per}{by}"


def _cache(spec: Spec, dtype: str) -> dict[str, str]:
    """What one sequence takes, of all layers together."""
    rows = spec.cache_spec(dtype)
    per_token, fixed = sum(row.bytes_per_token for row in rows), sum(row.bytes_fixed for row in rows)
    return {"a token": f"{per_token:,g} B", "whatever the length": f"{fixed:,} B"}


def _owed(spec: Spec) -> dict[str, str]:
    return {law.name: "owed" if law.owed else f"not owed, {law.reason}" for law in laws(spec)}


def _layers(before: list[tuple[str, ...]], after: list[tuple[str, ...]]) -> tuple[ChangedLayers, ...]:
    """Layers that differ, those that differ alike together, in the order of the first of them."""
    alike: dict[tuple[tuple[str, ...], tuple[str, ...]], list[int]] = {}
    for index in range(max(len(before), len(after))):
        pair = (before[index] if index < len(before) else (), after[index] if index < len(after) else ())
        if pair[0] != pair[1]:
            alike.setdefault(pair, []).append(index)
    return tuple(ChangedLayers(layers=tuple(found), before=old, after=new) for (old, new), found in alike.items())


def _rows(spec: Spec) -> list[tuple[str, ...]]:
    """For each layer its rows as text."""
    found: list[list[str]] = [[*_shape(layer.mixer)] for layer in spec.layers]
    for row in table(spec):
        for index in row.layers:
            found[index].append(_row(row))
    return [tuple(rows) for rows in found]


def _row(row: TableRow) -> str:
    heads = str(row.first) if row.first == row.last else f"{row.first}..{row.last}"
    cells = [
        heads,
        row.scope,
        row.case,
        row.mixer,
        row.positions,
        *(f"{key} = {value}" for key, value in row.attributes.items()),
    ]
    return "  ".join(cell for cell in cells if cell)


def _shape(mixer: Mixer) -> Iterator[str]:
    """How parts and alternatives are put together, which the rows do not say."""
    match mixer:
        case Sum(names=names) if len(names) > 1:
            yield " + ".join(names)
        case Chain(names=names) if len(names) > 1:
            yield " >> ".join(names)
        case Gate(names=names, by=by, shared=shared):
            yield f"gate({', '.join(names)}, by = {by}" + (f", shared = [{', '.join(shared)}]" if shared else "") + ")"
        case Choose(per=per, by=by) if by is not None:
            yield f"choose(per = {per}, by = {print_value(by)})"
        case Route(per=per, by=by):
            yield f"route(per = {per}, by = {print_value(by)})"
        case Select(name=name, keep=keep, by=by):
            yield f"select({name}, keep = {keep}, by = {print_value(by)})"
    for inner in children(mixer):
        yield from _shape(inner)


SECTIONS = ("model", "layers", "budgets", "recipe", "driver", "cache", "laws")


def difference_lines(found: Difference) -> Iterator[tuple[str, str]]:
    """(sign, text) of each line: titles have no sign, lines of the first spec `-`, of the second `+`, of both a blank."""
    for section in SECTIONS:
        changes = getattr(found, section)
        if changes and section != "layers":
            yield "", {"cache": "cache of one sequence"}.get(section, section)
        for one in changes:
            if isinstance(one, ChangedLayers):
                yield "", f"layer{'s' * (len(one.layers) > 1)} {ranges(list(one.layers))}"
                yield from (("-" if row not in one.after else " ", row) for row in one.before)
                yield from (("+", row) for row in one.after if row not in one.before)
            else:
                name = f"{one.name} =" if section in ("model", "recipe", "driver") else f"{one.name}:"
                yield from (("-", f"{name} {one.before}"),) if one.before else ()
                yield from (("+", f"{name} {one.after}"),) if one.after else ()
