"""The specs that come with the package."""

from __future__ import annotations

from importlib import resources

from attnc.cli.exits import CommandError, Exit


def names() -> list[str]:
    """Their names, without `.attn`, in alphabetical order."""
    return sorted(entry.name.removesuffix(".attn") for entry in _folder().iterdir() if entry.name.endswith(".attn"))


def text(name: str) -> str:
    """The text of one. CommandError with the closest name for one that there is not."""
    from attnc.dsl.diagnostic import closest

    known = names()
    if name.removesuffix(".attn") not in known:
        advice = closest(name.removesuffix(".attn"), known) or "`attnc specs` lists all of them"
        raise CommandError(Exit.USAGE, f"there is no shipped spec `{name}`", advice)
    return (_folder() / f"{name.removesuffix('.attn')}.attn").read_text("utf-8")


def title(text: str) -> str:
    """The first comment line, without its mark; empty where a text begins otherwise."""
    first = text.split("\n", 1)[0]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def complete(incomplete: str) -> list[tuple[str, str]]:
    """Names that begin so, with their titles, for the shell."""
    return [(name, title(text(name))) for name in names() if name.startswith(incomplete)]


def _folder() -> resources.abc.Traversable:
    return resources.files("attnc") / "specs"
