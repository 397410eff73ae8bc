"""Text to tokens and back, with the tokenizer that lies in a built folder."""

from __future__ import annotations

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
        self.stop = tuple(_object(folder / "generation_config.json").get("eos_token_id", ()))

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
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        path = self.folder / "chat_template.jinja"
        if not path.exists():
            raise CommandError(Exit.USAGE, f"{self.folder} has no chat_template.jinja", "leave --chat out")
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        template = environment.from_string(path.read_text("utf-8"))
        settings = _object(self.folder / "tokenizer_config.json")
        special = {name: _word(settings[name]) for name in ("bos_token", "eos_token", "pad_token") if settings.get(name)}
        return template.render(messages=[{"role": "user", "content": prompt}], add_generation_prompt=True, **special)


def _tokenizer(folder: Path) -> Tokenizer:
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


def _refuse(message: str) -> NoReturn:
    """What a chat template calls where it cannot render."""
    raise CommandError(Exit.USAGE, f"the chat template refuses: {message}", "leave --chat out")
