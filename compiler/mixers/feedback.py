"""`feedback(heads = 1, gain = learned)`: attention inside a recurrent feedback path (Sessa, arXiv 2604.18580)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from attnc.compiler.attributes import OF_INPUT, OF_OUTPUT
from attnc.compiler.declare import Bounds
from attnc.compiler.mixer import Growing, Kind, Mixer, Weight
from attnc.compiler.plain import Cost, Plain, Stored
from attnc.compiler.value import Broken


class Feedback(Kind):
    """`feedback`: s = f + gain A s, f its input, A softmax over strictly earlier tokens: a triangular solve.

    `heads`: how many matrices A, each for its part of the width.
    `gain`: a number, or `learned`: 0.999 tanh of a map of the token.

    Queries, keys and gain are maps of f; Sessa's code takes them of what f was made of.
    """

    kind: Literal["feedback"] = "feedback"
    heads: Annotated[int, Bounds(1, 64)] = 1
    gain: Annotated[float | Literal["learned"], Bounds(-1, 1)] = "learned"


def _fits(kind: Feedback, _attributes: Any, model: Any) -> Iterator[Broken]:
    if model.dim % kind.heads:
        message = f"dim {model.dim} does not split into {kind.heads} heads of `feedback`"
        yield Broken("heads", message, "heads that divide dim", "use `heads = 1`", "A204")


def feedback(f: Any, q: Any, k: Any, gain: Any, past_k: Any = None, past_s: Any = None) -> Any:
    """s_t = f_t + gain_t sum of A_tj s_j over j < t; A_t = softmax(q_t . k_j / sqrt(D)), nothing for the first token.

    One sequence of N tokens and H matrices A: f, q, k [N, H, D]; gain [N, H]; past_k, past_s [P, H, D] of the tokens before,
    or None. Returns s [N, H, D].
    """
    import torch

    keys = k if past_k is None else torch.cat((past_k, k))
    known = [] if past_s is None else list(past_s)
    begin = len(known)
    for t in range(len(f)):
        s = f[t]
        if known:
            logits = torch.einsum("hd,jhd->jh", q[t], keys[: len(known)]) / q.shape[-1] ** 0.5
            s = s + gain[t].unsqueeze(-1) * torch.einsum("jh,jhd->hd", torch.softmax(logits, dim=0), torch.stack(known))
        known.append(s)
    return torch.stack(known[begin:])


def _weights(kind: Feedback, _attributes: Any, model: Any) -> tuple[Weight, ...]:
    """q and k as wide as the model, the gain's map, and o."""
    found = [Weight(name=f"{name}_proj.weight", shape=(model.dim, model.dim)) for name in ("q", "k")]
    if kind.gain == "learned":
        found.append(Weight(name="gain.weight", shape=(kind.heads, model.dim)))
        found.append(Weight(name="gain.bias", shape=(kind.heads,), start=1.0))
    return (*found, Weight(name="o_proj.weight", shape=(model.dim, model.dim)))


def _growing(kind: Feedback, _attributes: Any, model: Any) -> tuple[Growing, ...]:
    """The key and the solution s of every token; s in float32, as later ones may be up to 1000 times an error of it."""
    shape = (kind.heads, model.dim // kind.heads)
    return Growing(name="k", shape=shape), Growing(name="s", shape=shape, dtype="float32")


def _plain(kind: Feedback, _attributes: Any, model: Any) -> Plain:
    """Blocks of 64 tokens: products with all before, and a small triangular solve."""
    width = model.dim // kind.heads
    return Plain(
        file="feedback",
        name="Feedback",
        options={"heads": kind.heads, "gain": None if kind.gain == "learned" else float(kind.gain)},
        formulas=(feedback,),
        width=model.dim,
        cost=Cost(flops=128.0 * model.dim, each=8 * model.dim, pairs=4.0 * model.dim, block=64, launches=12),
        out="o_proj",
        stored=Stored(kind.heads, width, width, exact=True),
        how="triangular solves in blocks of 64 tokens",
    )


MIXER = Mixer(
    name="feedback",
    type="mixer",
    parameters=Feedback,
    make_examples=lambda: (Feedback(), Feedback(heads=2, gain=0.5)),
    reference=feedback,
    plain=_plain,
    weights=_weights,
    growing=_growing,
    takes=lambda _kind: OF_INPUT | OF_OUTPUT - {"output_norm"},
    fits=_fits,
    looks_back=lambda _kind: True,
)
