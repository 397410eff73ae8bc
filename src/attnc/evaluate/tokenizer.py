"""How a model reads text: by the tokenizer of its folder, or byte by byte."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import ClassVar

from attnc.tasks.text import problem

NAME = "tokenizer.json"


class FolderTokenizer:
    """As `attnc.tasks.prompts.Tokenizer`; `first` are the tokens that go before every text, such as that of its beginning."""

    def __init__(self, folder: Path) -> None:
        """Raises SpecError A564 where there is none."""
        path = folder / NAME
        if not path.is_file():
            help_line = "build with --weights DIR from attnc import, or `--as bytes` if the model was trained on bytes"
            raise problem("A564", f"{folder} has no {NAME}, so it cannot be asked about text", str(folder), help_line)
        from tokenizers import Tokenizer

        self.file = path.read_text("utf-8")
        self.tokenizer = Tokenizer.from_str(self.file)
        found = self.tokenizer.encode("a")
        marks = takewhile(lambda pair: pair[1], zip(found.ids, found.special_tokens_mask, strict=True))
        self.first = tuple(token for token, _ in marks)

    def __eq__(self, other: object) -> bool:
        """Two of one file read alike, so that what one made of a text need not be made again."""
        return isinstance(other, FolderTokenizer) and self.file == other.file

    def __hash__(self) -> int:
        return hash(self.file)

    def plain(self, text: str) -> list[int]:
        """The tokens of a text alone."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, with those that go before it."""
        return [*self.first, *self.plain(text)]

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens; special ones say nothing."""
        return str(self.tokenizer.decode(tokens))


@dataclass(frozen=True)
class Bytes:
    """Each byte of UTF-8 is a token; what a folder without a tokenizer and with a vocabulary of 256 reads."""

    first: ClassVar[tuple[int, ...]] = ()

    def plain(self, text: str) -> list[int]:
        """0 to 255."""
        return list(text.encode())

    encode = plain

    def decode(self, tokens: list[int]) -> str:
        """What is no UTF-8, or no byte, is a question mark in a diamond."""
        return bytes(token if token < 256 else 255 for token in tokens).decode("utf-8", "replace")
