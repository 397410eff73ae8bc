"""A text as a stream of tokens: read block by block, again from the beginning at its end. Memory does not grow with the file.

Legend: B examples; N tokens of each.
"""

from __future__ import annotations

import codecs
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch

from attnc.codegen.problem import complaint
from attnc.dsl import SpecError
from attnc.tasks.examples import Examples
from attnc.tasks.text import Text
from attnc.train.source import Position

BLOCK = 1 << 18
"""Bytes read at once."""

BYTES = 256

Encode = Callable[[str], list[int]]


def encoder(folder: Path, vocabulary: int) -> tuple[str, Encode]:
    """(what it is, text -> tokens): the tokenizer of a built folder, or bytes.

    Raises SpecError A567 for a tokenizer with more tokens than the model, A575 for a model with fewer tokens than bytes.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        if vocabulary < BYTES:
            message = f"the model has {vocabulary} tokens and its folder no tokenizer.json, but bytes are {BYTES} tokens"
            help_line = "build with `--weights DIR` of an import, which brings its tokenizer, or with vocab = 256"
            raise SpecError([complaint("A575", message, folder, help_line)])
        return "bytes", lambda text: list(text.encode())
    if importlib.util.find_spec("tokenizers") is None:
        raise ModuleNotFoundError("the tokenizer needs a package", name="tokenizers")
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    count = tokenizer.get_vocab_size()
    if count > vocabulary:
        message = f"tokenizer.json has {count} tokens, the model {vocabulary}"
        raise SpecError([complaint("A567", message, path, "take the tokenizer that belongs to the model")])
    return "tokenizer.json", lambda text: list(tokenizer.encode(text, add_special_tokens=False).ids)


class FromText:
    """Examples of N tokens, one after another; each one's last target is the next one's first token."""

    def __init__(self, path: Path, length: int, encode: Encode, block: int = BLOCK) -> None:
        """Reads the file once. Raises SpecError A561 for one that is not UTF-8, A562 for one that is blank."""
        self.path, self.length, self.encode, self.block = path, length, encode, block
        self.digest = Text(path.name, path).digest()
        self.offset = 0
        self.waiting = torch.empty(0, dtype=torch.int32)

    def position(self) -> Position:
        """The next byte to read, and the tokens that were read and not yet used."""
        return {"text.place": torch.tensor(self.offset, dtype=torch.int64), "text.waiting": self.waiting.clone()}

    def go_to(self, position: Position) -> None:
        """Back to where it stood in the same file."""
        self.offset, self.waiting = int(position["text.place"]), position["text.waiting"]

    def examples(self, step: int, size: int) -> Examples:  # noqa: ARG002 (a text knows its place)
        """The next `size` examples. Raises SpecError A562 for a text that the tokenizer says nothing of."""
        wanted, ends = size * self.length, 0
        while len(self.waiting) <= wanted:  # one more token, for the last target
            new = self.encode(self._read())
            ends = 0 if new else ends + (self.offset == 0)
            if ends > 1:
                raise SpecError([complaint("A562", f"{self.path.name} has no tokens", self.path, "name a file with some text")])
            self.waiting = torch.cat((self.waiting, torch.tensor(new, dtype=torch.int32)))
        row, self.waiting = self.waiting[: wanted + 1].long(), self.waiting[wanted:]
        return Examples(row[:-1].view(size, self.length), row[1:].view(size, self.length))

    def _read(self) -> str:
        """The next piece of text, cut where words are told apart."""
        with self.path.open("rb") as file:
            file.seek(self.offset)
            block = file.read(self.block)
            last = not file.read(1)
        if not last:
            block = block[: _cut(block)]
        self.offset = 0 if last else self.offset + len(block)
        return block.decode()


def _cut(block: bytes) -> int:
    """Where a block may end: before a blank between two words, else after a line, else between two characters.

    Tokenizers begin a word with the blank before it, so pieces that are cut there give the tokens of the whole.
    """
    at = block.rfind(b" ")
    while at > 0 and (block[at - 1 : at].isspace() or block[at + 1 : at + 2].isspace() or at + 1 == len(block)):
        at = block.rfind(b" ", 0, at)
    if at > 0:
        return at
    if (line := block.rfind(b"\n")) >= 0:
        return line + 1
    return len(codecs.getincrementaldecoder("utf-8")().decode(block).encode())
