"""Text to tokens and back, with the tokenizer that lies in a built folder."""

from __future__ import annotations

import datetime
import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from attnc.cli.exits import CommandError, Exit

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Text:
    """The tokenizer, chat template and stop tokens of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = _tokenizer(folder)
        ends = _object(folder / "generation_config.json").get("eos_token_id", [])
        self.stop = tuple(ends) if isinstance(ends, list) else (ends,)

    def encode(self, prompt: str, *, chat: bool) -> list[int]:
        """The tokens of a prompt, or of the conversation that it begins."""
        if chat:
            return list(self.tokenizer.encode(self._conversation(prompt), add_special_tokens=False).ids)
        return list(self.tokenizer.encode(prompt).ids)

    def stream(self, tokens: Iterator[int]) -> Iterator[str]:
        """Pieces of text as soon as they are whole characters; the stop token says nothing."""
        from tokenizers.decoders import DecodeStream

        decoder = DecodeStream(skip_special_tokens=True)
        for token in tokens:
            if token not in self.stop and (piece := decoder.step(self.tokenizer, token)):
                yield piece

    def _conversation(self, prompt: str) -> str:
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        path = self.folder / "chat_template.jinja"
        if not path.exists():
            raise CommandError(Exit.USAGE, f"{self.folder} has no chat_template.jinja", "leave --chat out")
        # the same surroundings that transformers gives to templates; they come with checkpoints, so they run in a sandbox
        loops = ["jinja2.ext.loopcontrols"]
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=loops)
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refuse, "strftime_now": datetime.datetime.now().strftime}
        try:
            template = environment.from_string(path.read_text("utf-8"))
            messages = [{"role": "user", "content": prompt}]
            return template.render(messages=messages, add_generation_prompt=True, **self._special())
        except TemplateError as error:
            raise CommandError(Exit.USAGE, f"{path} cannot be used: {error}", "leave --chat out") from error

    def _special(self) -> dict[str, str]:
        """`bos_token` and the like, by name."""
        settings = _object(self.folder / "tokenizer_config.json")
        return {name: _word(token) for name, token in settings.items() if name.endswith("_token") and token}


def _tokenizer(folder: Path) -> Tokenizer:
    if importlib.util.find_spec("tokenizers") is None:
        raise CommandError(Exit.ENVIRONMENT, "the package tokenizers is not installed", "pip install 'attnc[hf]'")
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise CommandError(Exit.USAGE, f"{folder} has no tokenizer.json", "build with --weights DIR from attnc import")
    return Tokenizer.from_file(str(path))


def _object(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def _word(token: str | dict[str, Any]) -> str:
    """A special token's text, which tokenizer_config.json holds alone or in an object."""
    return token if isinstance(token, str) else str(token["content"])


def _to_json(value: Any, indent: int | None = None) -> str:
    """For templates: JSON as it is, where jinja2's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    """What a chat template calls where it cannot render."""
    raise CommandError(Exit.USAGE, f"the chat template refuses: {message}", "leave --chat out")
