"""Random mixers with matrix states: what a spec may say of `linear`, as long as results keep a size that rounding is judged by.

Keys of the delta rule have length 1, as in every published model, and sums of products that are divided by are positive.
"""

from __future__ import annotations

from hypothesis import strategies as st


@st.composite
def state_mixers(draw: st.DrawFn) -> str:
    """`linear(...) { ... }`."""

    def one(*texts: str) -> str:
        return draw(st.sampled_from(texts))

    erases = draw(st.booleans())
    decay = one("", "decay = slopes", "decay = retention", "decay = scalar", "decay = vector")
    gated = decay.endswith(("scalar", "vector"))
    given, attributes = [decay], [one("", "output_norm = rms"), one("", "output_gate = silu"), one("", "short_conv = 3")]
    attributes.append(one("", "value_dim = 6"))
    if gated:
        given += [one("", "lower_bound = 0.25", "lower_bound = learned"), one("", "", "key = one_minus_decay")]
    if "key = one_minus_decay" not in given:
        attributes.append(one("", "rope = 100", "rope = 100, rope_scale = linear(2)"))
    if erases:
        given += ["update = delta", one("", "erase = vector"), one("", "write = vector"), one("", "beta = 2")]
        attributes.append("qk_norm = l2")
    else:
        given += [one("", "feature = elu", "feature = taylor(2)", "feature = softmax", "feature = hedgehog")]
        given += [one("", "normalize = sum")] if given[-1] and "key = one_minus_decay" not in given else []
        attributes.append(one("", "qk_norm = rms", "qk_norm = l2"))
    told, said = (", ".join(filter(None, texts)) for texts in (given, attributes))
    return f"linear{f'({told})' if told else ''}{f' {{ {said} }}' if said else ''}"
