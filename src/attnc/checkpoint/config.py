"""A checkpoint's configuration, read key by key; whatever the language cannot say stops with the key's name and value."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnc.checkpoint.problem import problem
from attnc.dsl.diagnostic import SpecError
from attnc.dsl.source import Source, Span


@dataclass(frozen=True)
class Config:
    """The object of a config.json. `source`: where diagnostics point; a GGUF file's is the text of the same object."""

    values: dict[str, Any]
    source: Source = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> Config:
        """Read `path`. Errors: A521 where it is not a JSON object."""
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            source = Source(str(path), text)
            at = min(error.pos, max(0, len(text) - 1))
            raise problem("A521", f"{path.name} is not JSON: {error.msg}", span=Span(source, at, at + 1)) from None
        except RecursionError:
            raise problem("A521", f"{path.name} is nested too deeply to be a configuration", file=path) from None
        if not isinstance(values, dict):
            raise problem("A521", f"{path.name} holds no JSON object", file=path)
        return cls(values, Source(str(path), text))

    @classmethod
    def of(cls, values: dict[str, Any], name: str) -> Config:
        """A configuration that came from elsewhere, so that diagnostics can still show the line."""
        return cls(values, Source(name, json.dumps(values, indent=2, default=str)))

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key`, or `default` where it is missing or null."""
        value = self.values.get(key)
        return default if value is None else value

    def span(self, key: str) -> Span:
        """Where `key` stands in the text; the first character where it does not."""
        found = re.search(rf"{re.escape(json.dumps(key))}\s*:[^\n]*", self.source.text)
        return Span(self.source, *(found.span() if found else (0, 1)))

    def refuse(self, key: str, expected: str, part: str = "") -> SpecError:
        """Error A523: the value of `key` (or `part` of it) is something the language cannot say."""
        shown = part or _short(self.values.get(key))
        return problem("A523", f"{key} = {shown} cannot be said in the language: {expected}", span=self.span(key), help=_HELP)

    def integer(self, key: str, default: int | None = None) -> int:
        """A whole number from 1. Errors: A525 where it is missing or anything else."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            shown = "missing" if value is None else _short(value)
            raise problem("A525", f"{key} is {shown}: a whole number from 1 is expected", span=self.span(key))
        return value

    def positive(self, key: str, default: float | None = None) -> float:
        """A number above 0. Errors: A525 where it is missing or anything else."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
            shown = "missing" if value is None else _short(value)
            raise problem("A525", f"{key} is {shown}: a number above 0 is expected", span=self.span(key))
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Errors: A525 where it is anything else."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise problem("A525", f"{key} is {_short(value)}: true or false is expected", span=self.span(key))
        return value


_HELP = "checkpoints with this setting cannot be imported"


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
