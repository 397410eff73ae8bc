"""Text in and out of a model: tokenizer, chat template, end of the answer. Needs the packages tokenizers and jinja2."""

from __future__ import annotations

import datetime
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from attnc.checkpoint.problem import problem
from attnc.checkpoint.tokenizer import GENERATION, SETTINGS, TEMPLATE, TOKENIZER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Messages = Sequence[Mapping[str, str]]
"""A chat: `role` (system, user or assistant) and `content` of each message, in order."""

UNFINISHED = "\ufffd"
"""What a tokenizer makes of bytes that do not yet end a character."""


@dataclass(frozen=True)
class Text:
    """A folder's tokenizer. `ends`: the tokens that end an answer; `sampling`: the defaults of generation_config.json."""

    tokenizer: Tokenizer
    folder: Path
    ends: frozenset[int]
    template: str = field(repr=False)
    names: Mapping[str, str]
    sampling: Mapping[str, Any]

    @classmethod
    def load(cls, folder: Path) -> Text:
        """The tokenizer of a built or imported folder. Errors: A531 without the package, A534 without a readable tokenizer."""
        if importlib.util.find_spec("tokenizers") is None:
            raise problem("A531", "the package tokenizers is not installed", file=folder, help="pip install tokenizers")
        from tokenizers import Tokenizer

        path = folder / TOKENIZER
        if not path.is_file():
            advice = "give token numbers, or put tokenizer.json there"
            raise problem("A534", f"the folder `{folder.name}` has no {TOKENIZER}", file=folder, help=advice)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the package raises nothing narrower
            raise problem("A534", f"{TOKENIZER} cannot be read: {error}", file=path) from error
        settings, defaults = _object(folder / SETTINGS), _object(folder / GENERATION)
        template = (folder / TEMPLATE).read_text(encoding="utf-8") if (folder / TEMPLATE).is_file() else ""
        ends = defaults.get("eos_token_id", [])
        found = frozenset(ends if isinstance(ends, list) else [ends])
        return cls(
            tokenizer, folder, found, template, _names(settings), {k: v for k, v in defaults.items() if "token" not in k}
        )

    def encode(self, text: str) -> list[int]:
        """Token numbers of a text, with the tokens that the tokenizer puts before it."""
        return list(self.tokenizer.encode(text).ids)

    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def chat(self, messages: Messages) -> list[int]:
        """Token numbers of a chat up to where its answer begins. Errors: A534 without a chat template, or with a broken one."""
        return list(self.tokenizer.encode(self.prompt(messages), add_special_tokens=False).ids)

    def prompt(self, messages: Messages) -> str:
        """The chat as the model was trained to read it, up to where its answer begins."""
        if not self.template:
            advice = "leave --chat out: the model continues the prompt"
            raise problem("A534", f"the folder `{self.folder.name}` has no chat template", file=self.folder, help=advice)
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        # the same surroundings that transformers gives to templates
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = _now
        try:
            template = environment.from_string(self.template)
            return template.render(messages=list(messages), add_generation_prompt=True, **self.names)
        except TemplateError as error:
            raise problem("A534", f"{TEMPLATE}: {error}", file=self.folder / TEMPLATE) from error

    def stream(self) -> Stream:
        """Text of one answer, token by token."""
        return Stream(self)


class Stream:
    """Turns tokens into text as they come; a character is given out when all its bytes are there."""

    def __init__(self, text: Text) -> None:
        self._text = text
        self._tokens: list[int] = []
        self._given = 0

    def push(self, token: int) -> str:
        """The new characters that `token` completes; often none."""
        self._tokens.append(token)
        whole = self._text.decode(self._tokens)
        if whole.endswith(UNFINISHED):
            return ""
        new = whole[self._given :]
        self._given = len(whole)
        return new


def _names(settings: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token` and the like, which templates name; old files hold an object in place of the text."""
    found = {}
    for key, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(content, str):
            found[key] = content
    return found


def _object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise problem("A534", f"{path.name} holds no JSON object", file=path)
    return values


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _refuse(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)
