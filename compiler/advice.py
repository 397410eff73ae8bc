"""What to write for keys that are not there: the nearest, what the field's word is called here, or where it belongs."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from attnc.compiler.attributes import Attributes
from attnc.compiler.field_words import RENAMED, VALUES, WRITTEN, WRITTEN_VALUES
from attnc.compiler.fields import Field, expectation, fields, is_value, items, options, tag
from attnc.compiler.mixer import Kind
from attnc.compiler.mixers import MIXERS
from attnc.compiler.problems import nearest
from attnc.compiler.tuning import ContextArguments, GateArguments, SelectArguments
from attnc.compiler.value import Share, Value
from attnc.dsl import tree

OPERATORS: dict[str, type[Value]] = {"gate": GateArguments, "context": ContextArguments, "select": SelectArguments}


class Advice(NamedTuple):
    """A help line, and what to put in the key's place where that is plain."""

    help: str
    fix: str | None = None


def about_key(key: str, declared: Collection[str], given: Collection[str], elsewhere: str = "") -> Advice:
    """Advice on a key that is not among `declared`; `given` are those that stand there already, right or wrong."""
    free = [one for one in declared if one not in given]
    renamed = next((one for one in RENAMED.get(key, ()) if one in free), "")
    if renamed:
        return Advice(f"did you mean `{renamed}`?", renamed)
    if elsewhere:
        return Advice(elsewhere)
    if key in WRITTEN:
        return Advice(f"it is written `{WRITTEN[key]}` here")
    return Advice(nearest(key, free, f"remove `{key}`"))


def as_attribute(key: str, owner: type[Value]) -> str:
    """For an argument of a mixer that is an attribute: where those stand; else empty."""
    known = [one for one in (key, *RENAMED.get(key, ())) if one in fields(Attributes)]
    if not known or not issubclass(owner, (Kind, *OPERATORS.values())):
        return ""
    return f"`{known[0]}` is an attribute: write it in braces behind the mixer, `{{ {known[0]} = ... }}`"


def as_inner(key: str, declared: Mapping[str, Field]) -> str:
    """For an argument that belongs to one of the words which another argument takes, `mlp(depth = 2)`; else empty."""
    inner = (member for field in declared.values() for member in field.types if is_value(member))
    owner = next((tag(one) for one in inner if key in fields(one)), "")
    return f"`{key}` is an argument of `{owner}`: write it in its parentheses" if owner else ""


def as_argument(key: str, arguments: Mapping[str, str]) -> str:
    """For an attribute that is an argument of the mixer before the braces (`arguments`: key -> mixer); else empty."""
    known = next((one for one in (key, *RENAMED.get(key, ())) if one in arguments), "")
    return f"`{known}` is an argument of `{arguments[known]}`: write it in its parentheses" if known else ""


def arguments_of(body: tree.Expression) -> dict[str, str]:
    """The arguments that the kinds and operators of a union take: key -> the word that takes it."""
    found: dict[str, str] = {}
    for part in body.parts if isinstance(body, tree.Union) else (body,):
        word = part.text if isinstance(part, tree.Name) else part.name.text if isinstance(part, tree.Call) else ""
        owner = MIXERS[word].parameters if word in MIXERS else OPERATORS.get(word)
        for key in fields(owner) if owner is not None else ():
            found.setdefault(key, word)
    return found


def by_key(value: tree.Expression, free: Iterable[Field]) -> str:
    """Advice on an argument by place where none is left: the first key that takes a number, if it is one."""
    numeric = (one for one in free if int in one.types or float in one.types or any(isinstance(n, int) for n in one.literals))
    first = next(numeric, None) if isinstance(value, tree.Number) else None
    return (
        f"give it by its key: `{first.key} = {value.span.text}`, or what it is" if first else "give it by its key, or remove it"
    )


def about_value(value: tree.Expression, field: Field) -> Advice:
    """Advice on a value that the field does not take; the fix replaces the word with which the value begins."""
    word = value.text if isinstance(value, tree.Name) else value.name.text if isinstance(value, tree.Call) else ""
    known = options(field.types)
    renamed = next((one for one in VALUES.get(word, ()) if one in known), "")
    meant = renamed or _truth(value, field)
    if meant:
        return Advice(f"did you mean `{meant}`?" if renamed else f"write `{meant}`", meant)
    if word in WRITTEN_VALUES and word not in known:
        return Advice(f"it is written `{WRITTEN_VALUES[word]}` here")
    if Share in field.types and isinstance(value, tree.Number) and 0 < value.value < 1:
        return Advice(f"a share is written `{value.value * 100:g}%`; a number of tokens is whole")
    inside = options(items(field.types))
    if word in inside:
        return Advice(f"write `[{value.span.text}]`", f"[{word}]")
    return Advice(nearest(word, known, f"give `{field.key}` {expectation(field)}"))


def sample(field: Field) -> str:
    """A value that a field takes, as far as it can be said without knowing more: `router(linear)`, `...` for a number."""
    for member in field.types:
        if is_value(member):
            required = [sample(one) for one in fields(member).values() if one.required and one.positional]
            return f"{tag(member)}({', '.join(required)})" if required else tag(member)
    return next(iter(options(field.types)), "...")


def _truth(value: tree.Expression, field: Field) -> str:
    """`true` and `false` in the words of other languages; where the field has words of its own, the one for on or off."""
    written = str(value.value) if isinstance(value, tree.Number) and not value.share else getattr(value, "text", "")
    truth = {"1": "true", "yes": "true", "on": "true", "0": "false", "no": "false", "off": "false"}.get(written, written)
    if truth not in ("true", "false") or bool in field.types:
        return truth if truth in ("true", "false") else ""
    if truth == "false":
        return "none" if type(None) in field.types else ""
    words = [one for one in options(field.types) if one != "none"]
    return words[0] if len(words) == 1 and words[0] in field.literals else ""
