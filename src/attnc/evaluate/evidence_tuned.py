"""docs/evidence/tuned.md: one model tuned in several ways, each proved on texts that nothing was measured on."""

from __future__ import annotations

from attnc.compiler.policy import Figure, Policy
from attnc.compiler.value import Value

WAYS = {
    "all": "all heads alike",
    "layer": "each layer",
    "head": "each head",
    "refined": "each head, refined",
    "duo": "DuoAttention's gates",
}


class Proof(Value):
    """One policy: how it was decided, its limit as a share of full attention's cache, and what it measured.

    timed  whether its figures hold measured times, at all lengths
    """

    way: str
    share: float
    policy: Policy
    timed: bool = False


class Tuned(Value):
    """docs/evidence/tuned.json."""

    schema_version: int = 1
    machine: str
    commit: str | None = None
    proofs: tuple[Proof, ...] = ()


def _said(figure: Figure) -> str:
    """Measured, how far the prediction is off, and full attention's own."""
    assert figure.measured is not None, "asked for measured ones alone"
    off = figure.predicted / figure.measured - 1
    return f"{figure.measured:.3g} ms at {figure.length} (predicted {off:+.1%}; full {figure.full:.3g})"


def page(known: Tuned, command: str) -> str:
    """docs/evidence/tuned.md."""
    rows = [["decided", "cache", "of full", "decode", "prefill", "text", "passkeys", "holds"]]
    rows.append(["---"] * len(rows[0]))
    for one in known.proofs:
        kept = max((figure for figure in one.policy.figures if figure.what == "kv_bytes"), key=lambda figure: figure.length)
        times = [
            "; ".join(_said(figure) for figure in one.policy.figures if figure.what == what and figure.measured is not None)
            for what in ("decode_ms", "prefill_ms")
        ]
        text = "; ".join(f"{loss.rise:+.2%} at {loss.length}" for loss in one.policy.losses if loss.task == "text")
        keys = "; ".join(f"{1 - loss.policy:.1%} at {loss.length}" for loss in one.policy.losses if loss.task == "passkey")
        share = f"{kept.predicted / kept.full:.1%}" if kept.full else ""
        cells = [
            WAYS[one.way],
            f"{kept.predicted / 2**20:.1f} MiB",
            share,
            *times,
            text,
            keys,
            "yes" if one.policy.proved else "no",
        ]
        rows.append(cells)
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    full = {(loss.task, loss.length): loss for one in known.proofs for loss in one.policy.losses}
    said = [
        f"{loss.full:.4f} nats a token at {length}" if task == "text" else f"{1 - loss.full:.1%} of passkeys at {length}"
        for (task, length), loss in sorted(full.items())
    ]
    return f"""# A model tuned

`{command}` measures SmolLM2-135M with [a free choice for every KV head](tuned.attn), solves for shares of full attention's
cache, proves each policy on held-out texts, and writes this page and [its numbers](tuned.json). [tuning.md](../tuning.md) says
what is measured. A policy holds if the loss on text rises by at most 1% and passkeys fall by at most 2 points. Measured on
{known.machine}, attnc {(known.commit or "of no commit")[:12]}. `refined` decides by losses that were measured again around
the policy; its estimate is that of the whole model, all others' are sums over single heads. Full attention: {"; ".join(said)}.

{table}
"""
