"""The resolved table as plain text: the model above it; budgets, recipe, laws and what is not built below."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator

from attnc.compiler.attributes import Attributes
from attnc.compiler.cache_spec import CacheRow
from attnc.compiler.causality import Refusal, causality, refusals
from attnc.compiler.fields import fields
from attnc.compiler.laws import laws
from attnc.compiler.print_value import print_number, print_value
from attnc.compiler.selectors import ranges
from attnc.compiler.spec import BudgetSite, Choose, Mixer, Model, Route, Spec
from attnc.compiler.table import SHOWN_ELSEWHERE, TableRow, table
from attnc.compiler.unbuilt import unbuilt
from attnc.compiler.value import Value
from attnc.compiler.walk import every

WIDTH = 150
"""Columns of the table, unless a terminal is narrower; a wider one has cells of several lines."""

NARROWEST = {"mixer": 44, "attributes": 26, "cache": 28}
"""Columns that a cell keeps when the table is too wide; others keep 20. A narrow terminal
leaves two fifths of it, or the longest word."""

HEADER = ("layers", "KV heads", "part", "case", "mixer", "positions", "attributes", "cache")

TOGETHER = re.compile(r"\([^()]{1,32}\)")
"""What no line break divides beside `key = value` and entries of a cache: short lists of arguments."""

SHOWN_USES = {"training": "training", "chunked_prefill": "prefill in chunks", "prefix_cache": "cached prefixes"}
"""What rule 3 refuses, in words."""

FIRST_LINE = ("name", "vocab", "dim", "layers", "feed_forward", "norm")
"""Settings of the model that its line shows in words of its own."""


def table_text(spec: Spec, dtype: str = "bfloat16", width: int = WIDTH) -> str:
    """The table as plain text, with the model above it, and everything else that the spec says below.

    The table has at most `width` columns, as far as words can be divided.
    """
    text = [*_model_lines(spec.model, spec.defaults), "", *_table_lines(table(spec, dtype), min(width, WIDTH))]
    decided = list(_decisions(spec))
    if decided:
        text += ["", "decisions", *decided]
    if spec.budgets:
        text += ["", "budgets", *map(_budget, spec.budgets)]
    if spec.recipe is not None:
        text += ["", "recipe", *_settings(spec.recipe)]
    if spec.driver is not None:
        text += ["", f"driver {spec.driver.word}", *_settings(spec.driver)]
    found = unbuilt(spec)
    if found:
        places: dict[str, list[int]] = {}
        for one in found:
            places.setdefault(one.message.removesuffix(" is not built yet"), []).append(one.span.line)
        text += ["", "not built yet"]
        text += [f"  {what} (line{'s' * (len(set(lines)) > 1)} {ranges(sorted(set(lines)))})" for what, lines in places.items()]
    text += ["", "laws"]
    text += [f"  {law.name}: {law.sentence if law.owed else f'not owed, {law.reason}'}" for law in laws(spec)]
    refused = refusals(spec)
    if refused:
        text += ["", f"refused, because choices look ahead ({causality(spec)})"]
        text += [f"  {SHOWN_USES[one.use]}: {_refusal(one)}" for one in refused]
    return "\n".join(text) + "\n"


def _refusal(one: Refusal) -> str:
    """Where, why, and what is allowed all the same."""
    but = f"; not in multiples of {one.multiple} tokens" if one.multiple else ""
    return f"layers {ranges(list(one.layers))}, {one.message}{but} ({one.code})"


def _model_lines(model: Model, defaults: Attributes | None) -> Iterator[str]:
    """The model in one line, and in a second what it sets beside and for every mixer."""
    ffn = f"{model.feed_forward.kind}({model.feed_forward.width})" if model.feed_forward else "no feed-forward"
    heads = (
        f", {defaults.heads} head{'s' * (defaults.heads > 1)} on {defaults.kv_heads} of {defaults.head_dim}" if defaults else ""
    )
    norm = model.norm.kind
    yield f"{model.name}: {model.layers} layers of {model.dim}{heads}, {ffn}, {norm}, vocabulary {model.vocab}"
    own = [field for field in fields(Model).values() if field.key not in FIRST_LINE]
    found = [f"{one.key} = {print_value(getattr(model, one.name))}" for one in own if getattr(model, one.name) != one.default]
    if defaults is not None:
        given = [one for one in fields(Attributes).values() if not one.required and one.key not in SHOWN_ELSEWHERE]
        values = ((one, getattr(defaults, one.name)) for one in given)
        found += [f"{one.key} = {print_value(value)}" for one, value in values if value != one.default]
        if defaults.value_dim != defaults.head_dim:
            found.append(f"value_dim = {defaults.value_dim}")
    if found:
        yield f"everywhere: {', '.join(found)}"


def _table_lines(rows: tuple[TableRow, ...], most: int) -> Iterator[str]:
    """The rows in columns; empty columns are left out, and cells of a table that is too wide have several lines."""
    cells = [HEADER, *(_cells(row) for row in rows)]
    used = [column for column in range(len(HEADER)) if any(line[column] for line in cells[1:])]
    widths = [max(len(line[column]) for line in cells) for column in used]
    narrowest = [NARROWEST.get(HEADER[column], 20) for column in used]
    if most < WIDTH:
        longest = [max(len(word) for line in cells[1:] for word in _words(line[column])) for column in used]
        narrowest = [max(word, NARROWEST.get(HEADER[column], 0) * 2 // 5) for word, column in zip(longest, used, strict=True)]
    while sum(widths) + 2 * len(widths) - 2 > most:
        spare = [width - least for least, width in zip(narrowest, widths, strict=True)]
        if max(spare) <= 0:
            break
        widths[spare.index(max(spare))] -= 1
    for line in cells:
        wrapped = [_wrapped(line[column], width) for column, width in zip(used, widths, strict=True)]
        for row in range(max(map(len, wrapped))):
            pieces = [cell[row] if row < len(cell) else "" for cell in wrapped]
            yield "  ".join(piece.ljust(width) for piece, width in zip(pieces, widths, strict=True)).rstrip()


def _words(cell: str) -> list[str]:
    """What no line break divides."""
    return cell.replace(" = ", "\0=\0").split() or [""]


def _wrapped(text: str, width: int) -> list[str]:
    """A cell in lines of at most `width` columns: unions between their key sets, calls between their arguments."""
    if len(text) <= width:
        return [text]
    lines: list[str] = []
    pieces = _pieces(text)
    indent = "    " if len(pieces) > 1 else "  "
    for piece in pieces:
        whole = TOGETHER.sub(lambda found: found[0].replace(" ", "\0") if len(found[0]) < width // 2 else found[0], piece)
        whole = whole.replace(" = ", "\0=\0")
        entries = whole.split("; ")
        whole = "; ".join(one.replace(" ", "\0") if len(one) < width and len(entries) > 1 else one for one in entries)
        if lines and len(lines[-1]) + 1 + len(piece) <= width:
            lines[-1] += f" {whole}"
        else:
            lines += textwrap.wrap(whole, width, break_long_words=False, break_on_hyphens=False, subsequent_indent=indent)
    return [line.replace("\0", " ") for line in lines]


def _pieces(text: str) -> list[str]:
    """A union as its key sets, with the sign of the union before all but the first; anything else whole."""
    found, depth = [""], 0
    for place, sign in enumerate(text):
        depth += (sign == "(") - (sign == ")")
        if depth == 0 and text[place : place + 2] == "| ":
            found[-1] = found[-1].rstrip()
            found.append("")
        found[-1] += sign
    return found


def _cells(row: TableRow) -> tuple[str, ...]:
    heads = str(row.first) if row.first == row.last else f"{row.first}..{row.last}"
    part = " ".join(word for word in (row.joined, row.scope) if word)
    attributes = ", ".join(f"{key} = {value}" for key, value in row.attributes.items())
    cache = "; ".join(cache_text(one, row) for one in row.cache)
    shown = heads if row.on_heads else ""
    return (ranges(list(row.layers)), shown, part, row.case, row.mixer, row.positions, attributes, cache)


def cache_text(row: CacheRow, of: TableRow) -> str:
    """One row of the cache, after what it is called where it is not the keys and values themselves."""
    name = row.name.removeprefix(f"layers.{row.layer}").removeprefix("." * bool(of.scope) + of.scope).strip(".")
    steps = [step for step in name.split(".") if step not in ("", "heads") and not step[:1].isdigit()]
    if of.by_itself and steps[:1] == [of.mixer.partition("(")[0]]:
        del steps[0]  # the state of a kind that is a mixer by itself
    label = f"{' '.join(steps)}: " if steps else ""
    each = f"{print_number(float(f'{row.bytes_per_token:.5g}'))} B a token"
    fixed = _bytes(row.bytes_fixed)
    if row.kind == "growing":
        return f"{label}{each}" if label else f"growing, {each}"
    if row.kind == "fixed":
        return f"{label}{fixed}" if label else f"state of {fixed}"
    ring = f"{label}ring of {row.tokens_kept}"
    return f"{ring}, {fixed}" if isinstance(row.tokens_kept, int) else f"{ring}, {each}, {fixed}"


def _decisions(spec: Spec) -> Iterator[str]:
    """By what each `choose` and `route` decides, with the layers that have it."""
    layers: dict[str, list[int]] = {}
    known: dict[int, list[str]] = {}
    for layer in spec.layers:
        if id(layer.mixer) not in known:
            known[id(layer.mixer)] = list(dict.fromkeys(map(_decision, every(layer.mixer))))
        for one in filter(None, known[id(layer.mixer)]):
            layers.setdefault(one, []).append(layer.index)
    for one, numbers in layers.items():
        yield f"  layers {ranges(numbers)}: {one}"


def _decision(mixer: Mixer) -> str:
    match mixer:
        case Choose(per=per, by=by):
            return f"choose per {per}, before building, by {'search' if by is None else print_value(by)}"
        case Route(per=per, chunk=chunk, by=by):
            when = "while running" if per in ("token", "chunk") else "once a prompt"
            return f"route per {f'chunk({chunk})' if chunk else per}, {when}, by {print_value(by)}"
        case _:
            return ""


def _bytes(count: int) -> str:
    """`4 B`, `42.5 KiB`, `16.6 MiB`."""
    if count < 2**10:
        return f"{count} B"
    return f"{count / 1024:.1f} KiB" if count < 2**20 else f"{count / 2**20:.1f} MiB"


def _budget(site: BudgetSite) -> str:
    """`mix.near.window.n  16..128, default 64, tuned per head by coverage(90%)`."""
    unit = "%" if site.share else ""
    bounds = f"{print_number(site.low)}{unit}..{print_number(site.high)}{unit}, default {print_number(site.default)}{unit}"
    when = "tuned" if site.when == "tuned" else "moved before training"
    per = f" per {site.per}" if site.per else ""
    by = f" by {print_value(site.by)}" if site.by is not None else ""
    return f"  {site.path}  {bounds}, {when}{per}{by}"


def _settings(value: Value) -> Iterator[str]:
    """The settings that a recipe or driver gives, or has by default."""
    for field in fields(type(value)).values():
        given = getattr(value, field.name)
        if given is not None:
            yield f"  {field.key} = {print_value(given)}"
