"""The text of an imported spec, laid out as the specs that come with attnc are."""

from __future__ import annotations

import re
from collections import Counter

from attnc.checkpoint.body import Body
from attnc.checkpoint.numbers import number
from attnc.checkpoint.rope import Rope
from attnc.checkpoint.row import Row

RESERVED = {"model", "mix", "layers", "heads", "recipe", "driver", "when", "choose", "route", "else"}


def spec_text(name: str, comment: str, body: Body) -> str:
    """A whole spec: a comment line, `model` and `layers`."""
    usual = _usual(body.rows)
    settings = [list(line) for line in body.settings]
    settings[2] += rope_settings(usual)
    lines = [f"# {line_of(comment)}", f"model {model_name(name)} {{"]
    lines += [f"  {', '.join(f'{key} = {value}' for key, value in line)}" for line in settings]
    return "\n".join([*lines, "}", "", *layer_lines(body.rows, usual)]) + "\n"


def model_name(name: str) -> str:
    """A name of the language made of a file's name."""
    word = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    word = word if word[:1].isalpha() else f"model_{word}".rstrip("_")
    return f"{word}_" if word in RESERVED else word[:64].rstrip("_")


def line_of(text: str) -> str:
    """One line of visible characters: a checkpoint's own words end up in a comment, and must stay there."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())[:200]


def rope_settings(rope: Rope) -> list[tuple[str, str]]:
    """`rope` and, where positions are stretched, `rope_scale`."""
    if rope.base is None:
        return [("rope", "none")]
    return [("rope", number(rope.base)), *([("rope_scale", rope.scale)] if rope.scale else [])]


def _usual(rows: tuple[Row, ...]) -> Rope:
    """The rotary setting of most layers, which the model says for all."""
    counts = Counter(row.rope for row in rows if row.rope.base is not None)
    return counts.most_common(1)[0][0] if counts else Rope(None)


def layer_lines(rows: tuple[Row, ...], usual: Rope) -> list[str]:
    """`layers { }`: the most frequent row last, as `else`."""
    written = [_expression(row, usual) for row in rows]
    kinds = [text for text, _ in Counter(written).most_common()]
    if len(kinds) == 1:
        return [f"layers {{ all: {kinds[0]} }}"]
    cases = [(selector([text == one for text in written]), one) for one in kinds[1:]] + [("else", kinds[0])]
    width = max(len(left) for left, _ in cases)
    return ["layers {", *(f"  {left:<{width}}: {right}" for left, right in cases), "}"]


def _expression(row: Row, usual: Rope) -> str:
    if row.rope == usual:
        return row.keys
    settings = rope_settings(row.rope)
    if usual.scale and row.rope.base is not None and not row.rope.scale:
        settings.append(("rope_scale", "none"))
    return f"{row.keys} {{ {', '.join(f'{key} = {value}' for key, value in settings)} }}"


def selector(chosen: list[bool]) -> str:
    """The shortest selector of the language for these layers: `every(n)`, `every(n, at = k)`, or a list of ranges."""
    for period in range(2, len(chosen) // 2 + 1):
        places = [place for place in range(period) if chosen[place]]
        if all(one == (layer % period in places) for layer, one in enumerate(chosen)) and places:
            if places == [period - 1]:
                return f"every({period})"
            at = str(places[0]) if len(places) == 1 else f"[{', '.join(map(str, places))}]"
            return f"every({period}, at = {at})"
    ranges: list[list[int]] = []
    for layer in (layer for layer, one in enumerate(chosen) if one):
        if ranges and ranges[-1][1] == layer - 1:
            ranges[-1][1] = layer
        else:
            ranges.append([layer, layer])
    parts = [str(first) if first == last else f"{first}..{last}" for first, last in ranges]
    return parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
