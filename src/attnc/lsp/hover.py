"""What a word means: a kind's parameters, what a key takes, and the rows of the table that an expression comes to."""

from __future__ import annotations

from attnc.compiler.fields import expectation, fields
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.selectors import ranges
from attnc.compiler.table import TableRow
from attnc.compiler.table_text import cache_text
from attnc.dsl import tree
from attnc.dsl.source import Source
from attnc.lsp.document import DEVICE, LENGTH, Document, items, mix_names, word_at, words
from attnc.lsp.place import Owner, place

MOST_ROWS = 8


def hover(document: Document, offset: int) -> str:
    """Markdown; empty where there is nothing to say."""
    source = document.source
    word = word_at(source, offset)
    said = _word(source, word.text, word.span.start) if word else ""
    item = next((one for one in items(source) if one.span.start <= offset <= one.span.end), None)
    rows = _rows(document, item, offset) if item else []
    shown = [_row(document, row) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        shown.append(f"and {len(rows) - MOST_ROWS} more rows")
    return "\n\n".join(part for part in [said, *shown] if part)


def _word(source: Source, word: str, start: int) -> str:
    read = words(source)
    following = next((one.text for one in read if one.span.start > start), "")
    frame = place(read, start).frame
    if following == "=" and word in frame.declared:
        one = frame.declared[word]
        default = "" if one.required or one.derived else f"; default `{print_value(one.default)}`"
        return f"**{word}**: {expectation(one)}{default}"
    if word in mix_names(source):
        definition = next((item for item in items(source) if isinstance(item, tree.Mix) and item.name.text == word), None)
        return f"```attn\n{definition.span.text}\n```" if definition else ""
    if word in MIXERS and (frame.sort != "arguments" or not frame.owners):
        return _kind(MIXERS[word].parameters)
    return ""


def _kind(owner: Owner) -> str:
    lines = [(owner.__doc__ or "").strip()]
    for key, one in fields(owner).items():
        default = "" if one.required or one.derived else f", default `{print_value(one.default)}`"
        lines.append(f"- `{key}`: {expectation(one)}{default}")
    return "\n".join(lines)


def _rows(document: Document, item: tree.Item, offset: int) -> list[TableRow]:
    """The rows of the layers that a case is for; of a mix those that it wrote."""
    rows, spec = document.rows, document.spec
    if spec and isinstance(item, tree.Layers):
        case = next((one for one in item.cases if one.span.start <= offset <= one.span.end), None)
        owned = {layer.index for layer in spec.layers if case and layer.origin.line == case.span.line}
        return [row for row in rows if owned.intersection(row.layers)]
    if isinstance(item, tree.Mix):
        last = item.span.line + item.span.text.count("\n")
        return [row for row in rows if item.span.line <= row.origin.line <= last]
    return []


def _row(document: Document, row: TableRow) -> str:
    heads = f"{row.first}" if row.first == row.last else f"{row.first}..{row.last}"
    parts = [f"layers {ranges(list(row.layers))}, KV heads {heads}", row.scope, row.case]
    lines = [", ".join(part for part in parts if part), f"`{row.mixer}`"]
    if row.positions:
        lines.append(f"positions: {row.positions}")
    if row.attributes:
        lines.append(", ".join(f"`{key} = {value}`" for key, value in row.attributes.items()))
    if row.cache:
        lines.append("cache of each layer: " + ", ".join(cache_text(one, row) for one in row.cache))
    price = document.prices.get(row.layers[0])
    if price:
        lines.append(f"each layer on {DEVICE}, {LENGTH} tokens: {price}")
    return "  \n".join(lines)
