"""What strides and powers of two ask of keys, found by the party that plans: a division for each key of a step, once, and not
for each pair of a query and a key.
"""

from __future__ import annotations

from attnc.codegen.triton.holes import Names
from attnc.compiler.families import Softmax


def far_holes(kernel: Softmax) -> dict[str, str]:
    """The functions of skeletons/spreading.py, for the far patterns of a row of numbers."""
    if not kernel.far:
        return {}
    names = Names.of(kernel)
    numbers = names.unpack.replace("\n", "\n    ")
    told = [(name, "%") for name in names.strides] + [(name, "//") for name in names.powers]
    telling = [f"spread.index(place + {n}).store(x {sign} gl.maximum({name}, 1))" for n, (name, sign) in enumerate(told)]
    seeing = ["seen = j < 0"]
    for n, (name, sign) in enumerate(told):
        own, other = f"i {sign} gl.maximum({name}, 1)", f"spread.index(place + {n}).load(KEYS)[None, :]"
        if sign == "%":
            seeing.append(f"seen |= ({name} > 0) & ({own} == {other})")
        else:
            seeing += [f"apart = gl.abs({own} - {other})", f"seen |= ({name} > 0) & (apart & (apart - 1) == 0)"]
    return {
        "tell_spread": "\n    ".join(["@gluon.jit\ndef tell_spread(spread, place, numbers, x):", numbers, *telling]),
        "far_seen": "\n    ".join(
            ["@gluon.jit\ndef far_seen(numbers, i, j, spread, place, KEYS: gl.constexpr):", numbers, *seeing, "return seen"]
        ),
    }
