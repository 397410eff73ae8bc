"""Asking: the loss on a text, answers in places of a text that is read, and answers that are decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor
from torch.nn import functional as F

from attnc.evaluate.subject import Subject
from attnc.evaluate.tokenizer import Bytes, FolderTokenizer
from attnc.runtime.sizes import DECODE_TOKENS
from attnc.tasks.examples import NOT_ASKED, Examples
from attnc.tasks.prompts import Prompt
from attnc.tasks.text import Text, windows

Said = Callable[[int], None]
"""Hears how many trials are done."""

Reader = FolderTokenizer | Bytes


def losses(
    subject: Subject, tokenizer: Reader, text: Text, length: int, most: int, batch: int, said: Said
) -> list[tuple[float, int]]:
    """Nats and tokens asked of each window, at most `most`; the text is read as far as that."""
    found: list[tuple[float, int]] = []
    parts = islice(windows(text.tokens(tokenizer.plain), length, tokenizer.first), most)
    for part in _alike(parts, batch):
        targets = torch.tensor([row for _, row in part], dtype=torch.int64)
        nats = _nats(subject, subject.tensor([row for row, _ in part]), targets)
        found += [(float(row), int(count)) for row, count in zip(nats, (targets != NOT_ASKED).sum(1), strict=True)]
        said(len(found))
    return found


@torch.no_grad()
def losses_behind(
    subject: Subject, tokenizer: Reader, text: Text, length: int, most: int, batch: int, decoded: int
) -> list[tuple[float, int]]:
    """As `losses`, of the last `decoded` tokens of each window: they are decoded, 16 at a time, behind a prefill of the rest.

    So a model whose prefill looks ahead can be asked, and one that chooses while decoding shows it.
    """
    found: list[tuple[float, int]] = []
    parts = islice(windows(text.tokens(tokenizer.plain), length, tokenizer.first), most)
    for part in _alike((one for one in parts if len(one[0]) > decoded), batch):
        targets = torch.tensor([row for _, row in part], dtype=torch.int64)
        inputs, before = subject.tensor([row for row, _ in part]), len(part[0][0]) - decoded
        cache = subject.model.new_cache(len(part), before + decoded)
        nothing = torch.zeros(0, dtype=torch.int64, device=inputs.device)
        subject.model(inputs[:, :before], cache=cache, at=nothing)
        total = torch.zeros(len(part), dtype=torch.float64)
        for start in range(before, before + decoded, DECODE_TOKENS):
            here = slice(start, start + DECODE_TOKENS)
            wide = subject.model(inputs[:, here], cache=cache).logits.float()
            each = F.cross_entropy(wide.flatten(0, 1), targets[:, here].flatten().to(wide.device), reduction="none")
            total += each.double().view(len(part), -1).sum(1).cpu()
        found += [(float(row), decoded) for row in total]
    return found


def _nats(subject: Subject, tokens: Tensor, targets: Tensor) -> Tensor:
    """[B], each row's sum in float64 on the host; a token's loss is computed in float32 at least."""
    total = torch.zeros(len(tokens), dtype=torch.float64)
    for start, logits in subject.logits(tokens):
        wide = logits if logits.dtype == torch.float64 else logits.float()
        asked = targets[:, start : start + wide.shape[1]].to(wide.device)
        each = F.cross_entropy(wide.flatten(0, 1), asked.flatten(), ignore_index=NOT_ASKED, reduction="none")
        total += each.double().view(len(tokens), -1).sum(1).cpu()
    return total


def _alike(parts: Iterator[tuple[list[int], list[int]]], batch: int) -> Iterator[list[tuple[list[int], list[int]]]]:
    """Batches of windows of one length: the last one of a text may be shorter."""
    waiting: list[tuple[list[int], list[int]]] = []
    for part in parts:
        if waiting and (len(waiting) == batch or len(part[0]) != len(waiting[0][0])):
            yield waiting
            waiting = []
        waiting.append(part)
    if waiting:
        yield waiting


def read(subject: Subject, examples: Examples, batch: int, said: Said) -> list[tuple[int, int]]:
    """Right answers and questions of each example, where the likeliest token at every place that is asked is the answer."""
    found: list[tuple[int, int]] = []
    for tokens, targets in _batches(list(zip(examples.tokens, examples.targets, strict=True)), batch):
        rows, wanted = torch.stack(tokens), torch.stack(targets)
        right = torch.zeros(len(rows), dtype=torch.int64)
        for start, logits in subject.logits(subject.tensor(rows.tolist())):
            best = logits.argmax(-1).cpu()
            right += (best == wanted[:, start : start + best.shape[1]]).sum(1)
        found += [(int(row), int(count)) for row, count in zip(right, (wanted != NOT_ASKED).sum(1), strict=True)]
        said(len(found))
    return found


def _batches(examples: list[tuple[Tensor, Tensor]], batch: int) -> Iterator[tuple[list[Tensor], list[Tensor]]]:
    for start in range(0, len(examples), batch):
        part = examples[start : start + batch]
        yield [tokens for tokens, _ in part], [targets for _, targets in part]


def decode(subject: Subject, examples: Examples, batch: int, said: Said) -> list[bool]:
    """Whether the likeliest tokens, decoded one by one from the question on, are the answer; it is asked in the last places."""
    digits = int((examples.targets[0] != NOT_ASKED).sum())
    prompts = examples.tokens[:, : examples.tokens.shape[1] - digits + 1].tolist()
    answers = examples.targets[:, -digits:].tolist()
    decoded = _decoded(subject, prompts, [digits] * len(prompts), batch, said)
    return [found == answer for found, answer in zip(decoded, answers, strict=True)]


def say(subject: Subject, tokenizer: Reader, prompts: Sequence[Prompt], batch: int, said: Said) -> list[bool]:
    """Whether the text that is decoded from a prompt begins with its answer."""
    rows, counts = [list(prompt.tokens) for prompt in prompts], [prompt.decoded for prompt in prompts]
    texts = map(tokenizer.decode, _decoded(subject, rows, counts, batch, said))
    return [prompt.answered(text) for prompt, text in zip(prompts, texts, strict=True)]


def _decoded(subject: Subject, prompts: list[list[int]], counts: list[int], batch: int, said: Said) -> list[list[int]]:
    """The likeliest next tokens of each prompt, `counts` many, with the cache; prompts may have different lengths."""
    found: list[list[int]] = []
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        sizes, most = [len(row) for row in rows], max(counts[start : start + batch])
        tokens = subject.tensor([[0] * (max(sizes) - len(row)) + row for row in rows])
        drawn = subject.model.generate(tokens, most, lengths=sizes, chunk=subject.prompt_chunk(len(rows)))
        new = torch.stack(list(drawn), dim=1).tolist()
        found += [row[:count] for row, count in zip(new, counts[start : start + batch], strict=True)]
        said(len(found))
    return found
