"""The texts that losses are measured on: prose, and passkeys that are asked at the end. Those of a proof are others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from attnc.evaluate.tokenizer import NAME, Bytes, FolderTokenizer
from attnc.tasks.examples import NOT_ASKED
from attnc.tasks.passkeys import Passkey
from attnc.tasks.prompts import passkey
from attnc.tasks.text import Text, topics, windows

ASKED = 1024
"""Places of a text whose next token is asked, at most; they are spread evenly."""

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)

Reader = FolderTokenizer | Bytes


class Sample(NamedTuple):
    """tokens, and the places that are asked with what comes after each."""

    task: str
    length: int
    number: int
    tokens: tuple[int, ...]
    asked: tuple[int, ...]
    targets: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Source:
    """Where samples come from: `weights` is the folder that may hold a tokenizer, `vocabulary` the model's."""

    weights: Path
    vocabulary: int
    text: Path | None
    seed: int

    @cached_property
    def reader(self) -> Reader | None:
        """None for a model of token ids, which can only be asked for passkeys."""
        if (self.weights / NAME).is_file():
            return FolderTokenizer(self.weights)
        return Bytes() if self.vocabulary == 256 else None

    @cached_property
    def prose(self) -> Text:
        """What is read; by default the part of pydoc_data.topics that is for calibration."""
        return Text(str(self.text), self.text) if self.text else topics(held_out=False)

    def samples(self, task: str, length: int, count: int) -> list[Sample]:
        """`count` texts of a task."""
        return list(islice(self._text(length) if task == "text" else self._passkeys(length), count))

    def _text(self, length: int) -> Iterator[Sample]:
        assert self.reader is not None, "models of token ids are asked for passkeys alone"
        parts = windows(self.prose.tokens(self.reader.plain), length, self.reader.first)
        for number, (inputs, targets) in enumerate(parts):
            places = [at for at, target in enumerate(targets) if target != NOT_ASKED]
            step = -(-len(places) // ASKED)
            places = places[:: max(1, step)]
            yield Sample("text", length, number, tuple(inputs), tuple(places), tuple(targets[at] for at in places))

    def _passkeys(self, length: int) -> Iterator[Sample]:
        number = 0
        make: Callable[[int, int], Sample] = self._of_tokens if self.reader is None else self._of_words
        while True:
            yield make(number, length)
            number += 1

    def _of_tokens(self, number: int, length: int) -> Sample:
        task = Passkey(digits=min(5, max(1, (length - 1) // 4)))
        found = task.batch(self.seed, number, 1, length, self.vocabulary)
        row, targets = found.tokens[0].tolist(), found.targets[0].tolist()
        places = [at for at, target in enumerate(targets) if target != NOT_ASKED]
        return Sample("passkey", length, number, tuple(row), tuple(places), tuple(targets[at] for at in places))

    def _of_words(self, number: int, length: int) -> Sample:
        assert self.reader is not None, "prompts are text"
        prompt = passkey(self.reader, self.seed, number, length, DEPTHS[number % len(DEPTHS)])
        answer = self.reader.plain(f" {prompt.answer}")
        tokens = (*prompt.tokens, *answer[:-1])
        places = range(len(prompt.tokens) - 1, len(tokens))
        return Sample("passkey", length, number, tokens, tuple(places), tuple(answer))
