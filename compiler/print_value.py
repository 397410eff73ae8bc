"""Checked values in the language's own spelling: `window(2048, aligned = 1024)`, `rope = none`, `every(6)`."""

from __future__ import annotations

from typing import Any

from attnc.compiler.fields import fields
from attnc.compiler.value import Between, Share, Value


def print_value(value: Any) -> str:
    """One value; arguments at their default are left out."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case float():
            return print_number(value)
        case Share():
            return str(value)
        case Between(low=low, high=high):
            return f"{low}..{high}"
        case (Value(), *_) if all(hasattr(item, "kind") for item in value):
            return print_keys(value)
        case tuple():
            return f"[{', '.join(map(print_value, value))}]"
        case Value():
            return _call(value)
        case _:
            return str(value)


def print_number(value: float) -> str:
    """`1000000`, `0.8`, `1e-6`."""
    plain, short = f"{value:.12g}", f"{value:g}"
    mantissa, mark, exponent = (short if abs(value) >= 1e9 and float(short) == value else plain).partition("e")
    return f"{mantissa}e{int(exponent)}" if mark else mantissa


def _call(value: Value) -> str:
    word = getattr(value, "kind", None) or getattr(value, "word", "")
    shown = []
    for field in fields(type(value)).values():
        argument = getattr(value, field.name)
        if field.required or argument != field.default_in(value):
            text = print_value(argument)
            shown.append(text if field.positional else f"{field.key} = {text}")
    return f"{word}({', '.join(shown)})" if shown else str(word)


def print_keys(kinds: tuple[Value, ...]) -> str:
    """A union of key sets."""
    return " | ".join(map(print_value, kinds))
