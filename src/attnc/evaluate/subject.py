"""The model that is asked, and how it reads: in chunks where it owes that they change nothing, whole otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

import attnc
from attnc.compiler.cache_spec import CacheRow, row_bytes
from attnc.compiler.data import from_data
from attnc.compiler.laws import laws
from attnc.compiler.policies import of_folder
from attnc.compiler.spec import Spec
from attnc.evaluate.report import Form, Read
from attnc.evaluate.tokenizer import NAME, Bytes, FolderTokenizer
from attnc.runtime.codes import is_memory
from attnc.runtime.model import BuiltModel
from attnc.tasks.text import problem

LOGITS = 2**26
"""Logits of one call, where a model reads in chunks: 256 MiB in float32."""

PROMPTS = 2**15
"""Tokens of one call whose logits nobody asks, where a model reads in chunks."""

LEAST = 32
"""Tokens of a chunk, at least: shorter ones would be decode steps."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A loaded model and what its spec says of it."""

    folder: Path
    model: BuiltModel
    spec: Spec

    @classmethod
    def of(cls, folder: Path, device: str, dtype: torch.dtype | None, reference: bool) -> Subject:
        """From a built folder with weights; raises the folder's WeightsError where they are missing."""
        model = attnc.load(folder, device, dtype, "reference" if reference else "plan")
        return cls(folder, model, of_folder(folder))

    @functools.cached_property
    def form(self) -> Form:
        """How the model reads text if nobody says; `tokens`: not at all."""
        if (self.folder / NAME).is_file():
            return "text"
        return "bytes" if self.vocabulary == 256 else "tokens"

    @functools.lru_cache(maxsize=2)  # noqa: B019  # lives as long as the command
    def tokenizer(self, form: Form) -> FolderTokenizer | Bytes:
        """Raises SpecError A564 where the folder has none."""
        return Bytes() if form == "bytes" else FolderTokenizer(self.folder)

    @functools.cached_property
    def _lacks(self) -> dict[str, str]:
        """Laws that the spec does not owe, with the reason."""
        return {law.name: law.reason for law in laws(self.spec) if not law.owed}

    def why(self, law: str) -> str:
        """Why the spec does not owe the law; empty if it does."""
        return self._lacks.get(law, "")

    @property
    def vocabulary(self) -> int:
        """Tokens that the embedding has."""
        weight: Tensor = self.model.model.embed_tokens.weight  # type: ignore[union-attr, assignment]
        return weight.shape[0]

    @property
    def read(self) -> Read:
        """How texts are read."""
        return "whole" if "chunked" in self._lacks else "chunks"

    def chunk(self, sequences: int) -> int | None:
        """Tokens of each sequence in one call; None: all."""
        return max(LEAST, LOGITS // (self.vocabulary * sequences)) if self.read == "chunks" else None

    def prompt_chunk(self, sequences: int) -> int | None:
        """As `chunk`, where the logits of the last tokens alone are computed."""
        return max(LEAST, PROMPTS // sequences) if self.read == "chunks" else None

    def must_not_look_ahead(self, task: str) -> None:
        """Raises SpecError A566 where a token could see what comes after it."""
        if "causal" in self._lacks:
            message = f"{task} cannot be asked: later tokens reach earlier places ({self._lacks['causal']})"
            raise problem("A566", message, str(self.folder), "mqar and copy can be asked")

    def cache_bytes(self, length: int) -> int:
        """What decoding keeps of one sequence of `length` tokens, in the model's dtype."""
        return sum(row_bytes(from_data(CacheRow, row), length) for row in self.model.cache_spec())

    def tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Tokens of equally many places, on the model's device. SpecError A567 for one that the model does not have."""
        tokens = torch.tensor(rows, dtype=torch.int64)
        if int(tokens.max()) >= self.vocabulary:
            message = f"the tokenizer gives token {int(tokens.max())}, the model has {self.vocabulary}"
            raise problem("A567", message, str(self.folder), "weights and tokenizer come from one checkpoint")
        return tokens.to(next(self.model.parameters()).device)

    @torch.no_grad()
    def logits(self, tokens: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Reads tokens [B, N] and yields logits [B, n, V], each with the place of its first."""
        size, length = tokens.shape
        if "causal" in self._lacks:
            yield 0, self.model(tokens).logits
            return
        cache = self.model.new_cache(size, length)
        for start in range(0, length, step := self.chunk(size) or length):
            part = tokens[:, start : start + step]
            yield start, self.model(part, cache=cache, total_lengths=length).logits


@contextmanager
def enough_memory(folder: Path, batch: int, length: int) -> Iterator[None]:
    """Raises SpecError A565, which says what to lower, where memory ends."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        lower = f"--batch below {batch}" if batch > 1 else "--dtype bfloat16, or a shorter --length"
        message = f"out of memory with {batch} sequence{'s' if batch > 1 else ''} of {length} tokens at once"
        raise problem("A565", message, str(folder), f"try {lower}") from error
