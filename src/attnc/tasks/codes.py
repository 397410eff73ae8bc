"""The codes that tasks and their evaluation may give: A560 to A569."""

from __future__ import annotations

from attnc.dsl.codes import Code

CODES: dict[str, Code] = {
    "A560": Code(
        "a task that does not fit into its length or vocabulary",
        "A task says how many tokens its question, its answer and what it asks about take at least; the message names the "
        "number that is too small.",
    ),
    "A561": Code(
        "a text that is not UTF-8",
        "The message says which byte is wrong, counted from 0. `iconv -f latin1 -t utf-8` converts a file of another encoding.",
    ),
    "A562": Code("a text with nothing to measure", "It is empty, or so short that no token follows another."),
    "A563": Code(
        "a task longer than the model's context",
        "`context` of the spec says at which length the model was trained. `--beyond-context` asks nevertheless.",
    ),
    "A564": Code(
        "a folder without a tokenizer",
        "`attnc import` writes `tokenizer.json`, and `attnc build --weights` copies it. Tasks on token ids need none, and "
        "`--as bytes` reads text byte by byte.",
    ),
    "A565": Code(
        "out of memory",
        "What a call takes grows with `--batch`, and with the length where the model reads a text in one call. What the cache "
        "takes grows with `--batch` times `--length`.",
    ),
    "A566": Code(
        "a model that sees what it is asked",
        "Where later tokens reach earlier places, as with `causal = false` or a choice of keys that looks ahead, the next "
        "token is no question. Tasks whose answers are nowhere in the text, mqar and copy, can be asked.",
    ),
    "A567": Code(
        "a tokenizer that does not fit the model",
        "It gives a token that the model's embedding does not have. Weights and tokenizer come from one checkpoint.",
    ),
}
