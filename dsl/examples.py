"""A wrong text and a right one for the codes of syntax; a text without a `model` stands below MODEL."""

from __future__ import annotations

from typing import NamedTuple

MODEL = """model small {
  vocab = 32000, dim = 512, layers = 4, ffn = swiglu(1408), norm = rms(1e-6)
  heads = 8, kv_heads = 4
}
"""

TINY = """model tiny {
  vocab = 100, dim = 64, layers = 2, heads = 4, ffn = swiglu(128)
  norm = rms(1e-6)
}
"""


class Example(NamedTuple):
    """The wrong text gives its code and no other; the right one, which says what was meant, checks."""

    wrong: str
    right: str


def whole(text: str) -> str:
    """An example as a file: as it is if it begins with a model or a comment, else below MODEL."""
    return text if text.startswith(("model ", "#")) else MODEL + text


EXAMPLES: dict[str, Example] = {
    "A001": Example("# to do\n", TINY + "layers { all: full }\n"),
    "A005": Example("layers { all: full { rope = 1e999 } }\n", "layers { all: full { rope = 1e6 } }\n"),
    "A006": Example("layers { all: sink(4) & window(64) }\n", "layers { all: sink(4) | window(64) }\n"),
    "A008": Example("layers { all: full { rope = 500k } }\n", "layers { all: full { rope = 500000 } }\n"),
    "A009": Example("mix Local = window(64)\nlayers { all: local }\n", "mix local = window(64)\nlayers { all: local }\n"),
    "A010": Example("layers { all: window[64] }\n", "layers { all: window(64) }\n"),
    "A011": Example("layers {\n  0: window(64\n  else: full\n}\n", "layers {\n  0: window(64)\n  else: full\n}\n"),
    "A012": Example("layers { all: full }\n}\n", "layers { all: full }\n"),
    "A013": Example("layers { all: full() }\n", "layers { all: full }\n"),
    "A014": Example("layers {\n  0: full +\n  else: full\n}\n", "layers {\n  0: full + conv(3)\n  else: full\n}\n"),
    "A015": Example("mix heads = window(64)\nlayers { all: full }\n", "mix near_heads = window(64)\nlayers { all: full }\n"),
    "A016": Example("layers { 0: full else: window(64) }\n", "layers { 0: full, else: window(64) }\n"),
    "A017": Example("local = window(64)\nlayers { all: full }\n", "mix local = window(64)\nlayers { all: local }\n"),
    "A018": Example("layers { all = full }\n", "layers { all: full }\n"),
    "A020": Example("# nothing says how large the model is\nlayers { all: full }\n", TINY + "layers { all: full }\n"),
    "A021": Example(
        TINY + "model tiny { context = 4096 }\nlayers { all: full }\n",
        TINY.replace("\n}", ", context = 4096\n}") + "layers { all: full }\n",
    ),
    "A022": Example("mix local = window(64)\n", "mix local = window(64)\nlayers { all: local }\n"),
    "A023": Example("layers { 0: full }\nlayers { else: window(64) }\n", "layers { 0: full, else: window(64) }\n"),
    "A024": Example(
        "layers { all: full }\nrecipe { freeze = [all] }\nrecipe { lora = [q, v] }\n",
        "layers { all: full }\nrecipe { freeze = [all], lora = [q, v] }\n",
    ),
    "A025": Example(
        "layers { all: full }\ndriver retrieve { window = 1024 }\ndriver retrieve { top_k = 64 }\n",
        "layers { all: full }\ndriver retrieve { window = 1024, top_k = 64 }\n",
    ),
    "A026": Example(
        "mix local = window(64)\nmix local = window(128)\nlayers { all: local }\n",
        "mix near = window(64)\nmix local = window(128)\nlayers { 0: near, else: local }\n",
    ),
    "A027": Example("layers { all: full { rope = none, rope = 500000 } }\n", "layers { all: full { rope = 500000 } }\n"),
    "A028": Example("layers { all: window(64, aligned = 8, aligned = 16) }\n", "layers { all: window(64, aligned = 16) }\n"),
    "A029": Example("layers { else: window(64), 0: full }\n", "layers { 0: full, else: window(64) }\n"),
    "A030": Example(
        "layers { 0: full, else: window(64), else: sink(4) }\n", "layers { 0: full, else: sink(4) | window(64) }\n"
    ),
    "A031": Example("layers { 3..1: window(64), else: full }\n", "layers { 1..3: window(64), else: full }\n"),
}

UNSHOWN: dict[str, str] = {
    "A002": "a text of more than 1 MiB",
    "A003": "33 brackets within one another",
    "A004": "a name of 65 letters",
    "A007": "a text with a NUL character, which no screen shows",
    "A019": "50001 words",
    "A099": "51 mistakes",
    "A501": "a path, not a text",
    "A502": "a path, not a text",
    "A503": "bytes, not a text",
    "A504": "a file of more than 1 MiB",
    "A505": "a file, not a text",
}
"""Codes without an example, and what one would be."""
