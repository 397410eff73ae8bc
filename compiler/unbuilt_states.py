"""What kinds with a state a head cannot have beside them so far, where a block decides between them and softmaxes."""

from __future__ import annotations

from collections.abc import Iterator

from attnc.compiler.head_states import head_states
from attnc.compiler.mixers import MIXERS
from attnc.compiler.print_value import print_value
from attnc.compiler.spec import Choose, Heads, Mixer, Mixing, When
from attnc.compiler.value import Value
from attnc.compiler.walk import attentions, children

BESIDE_STATES: dict[str, object] = {
    "kv_latent": None,
    "short_conv": None,
    "share_qk": False,
    "qk_from": None,
    "activation": None,
    "input_ema": None,
    "output_gate": None,
}
"""The only value that each of these attributes of a softmax can have so far, where other heads of its layer keep states."""

ALIKE = ("heads", "head_dim", "value_dim", "activation", "input_ema", "scale", "causal")
"""What a state and the softmaxes whose q, k, v and o it shares must have alike so far."""

Found = tuple[str, str, str]
"""What is not built, what was expected, and what to write instead."""


def of_heads(mixer: Heads) -> Iterator[Found]:
    """Of a block of `heads`: kinds whose q, k, v and o are those of its softmaxes are built."""
    states = [one for one in _ends(mixer) if isinstance(one, Mixing)]
    if not states:
        return
    for state in states:
        if MIXERS[state.kind.kind].scanned is None:
            yield (
                f"`{state.kind.kind}` for some heads of a layer",
                "`linear`, or key sets",
                f"write `heads {{ ... }} + {state.kind.kind}(...)`: all heads of both, added",
            )
            return
    softmaxes = [one for end in _ends(mixer) if not isinstance(end, Mixing) for one in attentions(end)]
    if not softmaxes:
        yield (
            "`heads` of states alone",
            "a key set for some of the heads",
            "add branches: `linear(...) { heads = n, kv_heads = n } + linear(...) { ... }`",
        )
        return
    for key, value in BESIDE_STATES.items():
        given = getattr(softmaxes[0].attributes, key)
        if given != value:
            said = f"`{key} = {_shown(given)}` of key sets beside a state for other heads"
            yield said, f"key sets without `{key}`", f"set `{key}` in the braces of the state alone, or leave it out"
    for state in states:
        own, theirs = state.attributes, softmaxes[0].attributes
        for key in ALIKE:
            if getattr(own, key) != getattr(theirs, key):
                said = f"`{key} = {_shown(getattr(own, key))}` of `{state.kind.kind}` beside heads with another"
                yield said, f"the same `{key}` in all cases", f"set `{key}` around the block"
        if own.qk_heads != own.heads:
            said = f"`qk_heads = {own.qk_heads}` of `{state.kind.kind}` beside heads of key sets"
            yield said, "a q of its own for each head, as key sets have", "leave `qk_heads` out"


def of_cases(mixer: When) -> Iterator[Found]:
    """Of a block that decides anew for each call: a state holds what was read before, whatever decided then."""
    inside = [one for case in children(mixer) for one in _ends(case)]
    for kind in dict.fromkeys(one.kind.kind for one in inside if isinstance(one, Mixing) and MIXERS[one.kind.kind].per_head):
        yield (
            f"`{kind}` as a case of `when`",
            "a state that every call makes and reads: calls that take another case would leave it without their tokens",
            f"give it some heads, `heads {{ 0: full, else: {kind} }}`, or add it, `full + {kind}`",
        )


def beside_states(mixer: Mixer) -> bool:
    """Whether some heads of a mixer keep states."""
    return isinstance(mixer, Heads | Choose) and bool(head_states(mixer))


def _ends(mixer: Mixer) -> Iterator[Mixer]:
    """What the heads of a block come to, with `choose` at its default."""
    match mixer:
        case Heads():
            for inner in children(mixer):
                yield from _ends(inner)
        case Choose(alternatives=(first, *_)):
            yield from _ends(first.mixer)
        case _:
            yield mixer


def _shown(given: object) -> str:
    return print_value(given) if isinstance(given, Value) else str(given).lower()
