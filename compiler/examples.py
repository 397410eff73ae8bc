"""A wrong text and a right one for the checker's codes; a text without a `model` stands below attnc.dsl.examples.MODEL."""

from __future__ import annotations

from typing import Literal

from attnc.dsl.examples import TINY, Example

EXAMPLES: dict[str, Example] = {
    "A100": Example("layers { all: windw(64) }\n", "layers { all: window(64) }\n"),
    "A102": Example("layers { all: window(64, algined = 16) }\n", "layers { all: window(64, aligned = 16) }\n"),
    "A103": Example("layers { all: full { causal = 0 } }\n", "layers { all: full { causal = false } }\n"),
    "A104": Example("layers { all: stride(1) }\n", "layers { all: stride(2) }\n"),
    "A105": Example("layers { all: window }\n", "layers { all: window(64) }\n"),
    "A106": Example("layers { all: window(64, n = 128) }\n", "layers { all: window(128) }\n"),
    "A107": Example(
        "layers { all: conv(budget(2..4, default = 3)) }\n", "layers { all: window(budget(16..128, default = 64)) }\n"
    ),
    "A108": Example(
        "layers { all: window(budget(16..128, default = 256)) }\n", "layers { all: window(budget(16..256, default = 128)) }\n"
    ),
    "A109": Example("mix window = sink(4) | full\nlayers { all: full }\n", "mix wide = sink(4) | full\nlayers { all: wide }\n"),
    "A112": Example(
        "layers { all: routed(blocks(64), top_k = 4, top_p = 90%) }\n", "layers { all: routed(blocks(64), top_k = 4) }\n"
    ),
    "A200": Example("layers { 0..2: full, 2..3: window(64) }\n", "layers { 0..1: full, 2..3: window(64) }\n"),
    "A201": Example("layers { 0: full, 3: window(64) }\n", "layers { 0: full, 3: window(64), else: sink(4) | window(64) }\n"),
    "A202": Example("layers { 4: full, else: window(64) }\n", "layers { 3: full, else: window(64) }\n"),
    "A203": Example(
        "layers { all: (sink(4) { rope = none }) | window(64) }\n",
        "layers { all: (sink(4) | window(64)) { rope = none } }\n",
    ),
    "A204": Example("layers { all: window(60, aligned = 16) }\n", "layers { all: window(64, aligned = 16) }\n"),
    "A205": Example(
        "layers { all: heads { 0..2: full, 2..3: window(64) } }\n", "layers { all: heads { 0..1: full, 2..3: window(64) } }\n"
    ),
    "A206": Example(
        "layers { all: heads { 0: full, 2..3: window(64) } }\n", "layers { all: heads { 0: full, else: window(64) } }\n"
    ),
    "A207": Example(
        "layers { all: heads { 30%: full, else: window(64) } }\n", "layers { all: heads { 25%: full, else: window(64) } }\n"
    ),
    "A208": Example(
        "layers { all: heads { 0: full { head_dim = 32 }, else: full } }\n",
        "layers { all: heads { 0: full, else: window(64) } { head_dim = 32 } }\n",
    ),
    "A209": Example(
        "layers { 0: conv(3), else: full { qk_from = previous } }\n",
        "layers { 0: conv(3), 1: full, else: full { qk_from = previous } }\n",
    ),
    "A210": Example(
        "layers { all: when { length < 8192: full } }\n", "layers { all: when { length < 8192: full, else: window(1024) } }\n"
    ),
    "A211": Example(
        "layers { all: when { tokens < 8192: full, else: window(1024) } }\n",
        "layers { all: when { length < 8192: full, else: window(1024) } }\n",
    ),
    "A212": Example("layers { all: full { rope_dim = 33 } }\n", "layers { all: full { rope_dim = 32 } }\n"),
    "A213": Example("layers { all: conv(3) { rope = none } }\n", "layers { all: full { rope = none } }\n"),
    "A214": Example(
        "layers {\n  all: heads { 0: heads { 0: full, else: sink(4) }, else: window(64) }\n}\n",
        "layers { all: heads { 0: full, 1: sink(4), else: window(64) } }\n",
    ),
    "A215": Example(
        "layers { 0: full >> insert(landmark, every = 50), else: full }\n",
        "layers { 0: insert(landmark, every = 50) >> full, else: full }\n",
    ),
    "A216": Example(
        "layers { all: context(full, segment = 128) }\n", "layers { all: context(memory(linear), segment = 128) }\n"
    ),
    "A300": Example("layers { all: conv(3) { causal = false } }\n", "layers { all: full { causal = false } }\n"),
    "A301": Example(
        "layers { all: routed(blocks(64), top_k = 4, queries = block(64)) }\n",
        "mix sparse = routed(blocks(64), top_k = 4, queries = block(64))\n"
        "layers { all: when { phase == train: full, else: sparse } }\n",
    ),
    "A302": Example(
        "layers { all: routed(blocks(64), top_k = 4, queries = last(64)) }\n",
        "layers { all: routed(blocks(64), top_k = 4, queries = each) }\n",
    ),
    "A303": Example(
        "layers { all: routed(tokens, top_k = 256, queries = last(64)) }\n",
        "layers { all: routed(tokens, top_k = 256, queries = each) }\n",
    ),
    "A304": Example(
        "mix near = routed(clusters(8, size = 64), per = head)\nlayers { all: near }\n",
        "mix near = routed(clusters(8, size = 64), per = head, selection = noncausal)\nlayers { all: near }\n",
    ),
    "A309": Example(
        "layers { 0: merge(25%, by = bipartite) >> full, else: full }\n",
        TINY.replace("\n}", ", causal = false\n}") + "layers { 0: merge(25%, by = bipartite) >> full, else: full }\n",
    ),
}

USES: dict[str, Literal["training", "chunked_prefill", "prefix_cache"]] = {
    "A301": "training",
    "A302": "chunked_prefill",
    "A303": "prefix_cache",
}
"""Codes that no checking gives, but this use of a spec."""

UNSHOWN: dict[str, str] = {
    "A101": "a spec that checks, and of which a later version builds more",
    "A110": "an expression of more than 256 kinds",
    "A111": "an option of the command line",
    "A113": "an option of the command line",
    "A519": "a file of settings",
}
"""Codes without an example, and what one would be."""
