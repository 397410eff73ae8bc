"""`routed(unit, ...)`: content picks the keys. One row for the selectors of the field: see docs/language.md."""

from __future__ import annotations

from attnc.compiler.mixer import Mixer
from attnc.compiler.mixers.routed.ahead import changes, selection
from attnc.compiler.mixers.routed.choice import Antidiagonal, Every, Last, PerLayer, SoftmaxScore, Sublinear
from attnc.compiler.mixers.routed.formula import FORMULAS
from attnc.compiler.mixers.routed.keep import growing, kept, state, weights
from attnc.compiler.mixers.routed.kind import Routed
from attnc.compiler.mixers.routed.rules import rules
from attnc.compiler.mixers.routed.selector import lent, scores, selector, unbuilt
from attnc.compiler.mixers.routed.units import Blocks, Clusters, Indexer, LearnedPool, Mean
from attnc.compiler.value import Share

MIXER = Mixer(
    name="routed",
    type="keys",
    parameters=Routed,
    make_examples=lambda: (
        Routed(unit=Blocks(n=4), top_k=2),
        Routed(unit="tokens", top_k=4, keys=Indexer(heads=2, head_dim=4)),
        Routed(unit=Blocks(n=4), top_p=Share(percent=90), keys="minmax"),
        Routed(unit=Blocks(n=4), top_k=2, keys=Mean(n=4, stride=2), score=SoftmaxScore(lse=Mean(n=8, stride=4))),
        Routed(unit="tokens", top_k=4, queries=Last(n=4), score=SoftmaxScore(), refresh="once", evict=True),
        Routed(unit="tokens", top_k=Sublinear(k=4, from_=16, exponent=0.5), refresh=Every(n=8)),
        Routed(unit=Clusters(n=2, size=4), selection="noncausal"),
    ),
    chooses=selector,
    formulas=FORMULAS,
    decodes=lambda kind: (
        not (isinstance(kind.score, Antidiagonal) or (isinstance(kind.keys, LearnedPool) and kind.queries != "each"))
    ),
    whole_layer=lambda kind: (
        kind.queries != "each"
        or isinstance(kind.per, PerLayer)
        or isinstance(kind.keys, LearnedPool)
        or kind.refresh != "always"
    ),
    unbuilt=unbuilt,
    scores=scores,
    own_scores=lambda kind: isinstance(kind.keys, Indexer) and kind.from_ is None,
    lent=lent,
    kept=kept,
    weights=weights,
    state=state,
    growing=growing,
    rules=rules,
    selection=selection,
    changes=changes,
)
