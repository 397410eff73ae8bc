"""The methods of a spec: which candidates of a site each leaves, by what a run measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean

from attnc.compiler.policies import trouble
from attnc.compiler.tuning import SEARCHED, Coverage, Method, RecallDrop, RetrievalScore, Similarity, TrainedGate
from attnc.compiler.units import Unit
from attnc.compiler.value import Share
from attnc.tune.reuse import reuse
from attnc.tune.table import Option, Site, Table

Place = tuple[int, str, int]
"""Layer, scope and first KV group of a site."""

EPSILON = 1e-6
"""Of HALO's quotient."""


def by_itself(unit: Unit) -> bool:
    """Whether a method decides the unit by itself; else a search within limits does."""
    return not isinstance(unit.by, SEARCHED)


def allowed(table: Table, site: Site, options: Sequence[Option]) -> list[Option]:
    """The options that the site's method leaves; where a search decides, all."""
    method = None if table.free else stricter(site.unit.by, table.rounds)
    match method:
        case TrainedGate() | RetrievalScore() | RecallDrop():
            return _one_word(options, _first(table, site, method))
        case Similarity():
            return _one_word(options, _reuse(table, site.unit.by, method)[site.unit.layer] == site.unit.layer)
        case Coverage():
            return [_covered(table, site, options, method)]
        case _:
            return list(options)


def _one_word(options: Sequence[Option], first: bool) -> list[Option]:
    """Those of the first alternative, or of the last."""
    names = list(dict.fromkeys(one.candidate.choose for one in options))
    return [one for one in options if one.candidate.choose == names[0 if first else -1]]


def _covered(table: Table, site: Site, options: Sequence[Option], method: Coverage) -> Option:
    """The cheapest that loses little enough, or the one that loses least; the worst task counts."""
    together = table.beside(site)
    lost = {
        one.candidate: max(
            map(fmean, zip(*(table.measured(own, one.candidate, "mass").values() for own in together), strict=True))
        )
        for one in options
    }
    least = min(lost.values())
    most = least + 1e-9 if method.share is None else max(least, 1 - method.share.percent / 100)
    enough = [one for one in options if lost[one.candidate] <= most]
    return min(enough, key=lambda one: one.costs["decode_ms"] + one.costs["prefill_ms"])


def _first(table: Table, site: Site, method: TrainedGate | RetrievalScore | RecallDrop) -> bool:
    """Whether a site keeps its first alternative."""
    alike = [one for one in table.sites if one.unit.by == site.unit.by]
    match method:
        case RecallDrop():
            scores = _recall_scores(table, alike)
        case TrainedGate():
            scores = _scores(table, "gate")
        case RetrievalScore():
            scores = _scores(table, "retrieval")
    lacking = [one for one in alike if _place(one) not in scores]
    if lacking:
        message = f"`{method.word}` has not measured layer {lacking[0].unit.layer}"
        raise trouble("A613", message, table.run.place, "attnc tune score measures it")
    scores = {_place(one): max(scores[_place(own)] for own in table.beside(one)) for one in alike}
    if isinstance(method, RetrievalScore) and method.threshold is not None:
        return scores[_place(site)] >= method.threshold
    share = method.share or Share(percent=50)
    ranked = sorted(alike, key=lambda one: -scores[_place(one)])  # of equals the earlier
    return table.beside(site)[0] in ranked[: round(share.percent / 100 * len(alike))]


def _place(site: Site) -> Place:
    return (*site.unit.place, site.first)


def _scores(table: Table, what: str) -> dict[Place, float]:
    found: dict[Place, list[float]] = {}
    for row in table.rows.values():
        if row.what == what:
            found.setdefault((row.layer, row.scope, row.first), []).append(row.values[what])
    return {key: fmean(values) for key, values in found.items()}


def _recall_scores(table: Table, sites: Sequence[Site]) -> dict[Place, float]:
    """(R - least R) / (C - least C + epsilon): by how much passkeys and text lose with the last alternative at a site alone.

    Source: HALO, arXiv 2601.22156, with accuracies of recall and of common-sense reasoning where these are losses;
    MiniCPM-SALA (arXiv 2602.11761) keeps the layers with the largest quotients.
    """
    lost = [table.measured(one, one.unit.ends[1], "nll") for one in sites]
    for task in ("passkey", "text"):
        if task not in table.run.settings.tasks:
            message = f"`recall_drop` compares passkeys with text, and {task} is not measured"
            raise trouble("A613", message, table.run.place, "attnc tune score --task text,passkey, into another run")
    recall, text = ([max(0.0, own[task]) for own in lost] for task in ("passkey", "text"))
    quotients = [(r - min(recall)) / (c - min(text) + EPSILON) for r, c in zip(recall, text, strict=True)]
    return {_place(one): value for one, value in zip(sites, quotients, strict=True)}


def _reuse(table: Table, written: Method | None, method: Similarity) -> dict[int, int]:
    """Layer -> the layer whose choice it takes."""
    layers = sorted({unit.layer for unit in table.run.all if unit.by == written})
    found: dict[tuple[int, int], list[float]] = {}
    lost: dict[int, list[float]] = {}
    for row in table.rows.values():
        if row.what == "similarity":
            lost.setdefault(row.layer, []).append(row.values["lost"])
            for other in layers:
                found.setdefault((row.layer, other), []).append(row.values.get(str(other), 0.0))
    if any((one, other) not in found for one in layers for other in layers):
        raise trouble("A613", "`similarity` is not measured", table.run.place, "attnc tune score measures it")
    alike = [[fmean(found[one, other]) for other in layers] for one in layers]
    count = -(-len(layers) * method.dense.percent // 100)
    ranked = sorted(range(len(layers)), key=lambda at: -fmean(lost[layers[at]]))
    path = reuse(alike, method.threshold, set(ranked[: int(count)]))
    anchors = sum(source == at for at, source in enumerate(path))
    if anchors > method.anchors.percent / 100 * len(layers):
        message = f"{anchors} of {len(layers)} layers have to choose for themselves, more than {method.anchors} of them"
        raise trouble("A614", message, table.run.place, "lower the threshold of `similarity`, or raise `anchors`")
    return {layer: layers[source] for layer, source in zip(layers, path, strict=True)}


def stricter(method: Method | None, rounds: int) -> Method | None:
    """A method with more budget: a tenth more of the heads, or half as far from keeping everything, for each round."""
    half = 0.5**rounds
    match method:
        case TrainedGate(share=share) | RecallDrop(share=share):
            return replace(method, share=Share(percent=min(100, share.percent + 10 * rounds)))
        case RetrievalScore(threshold=threshold, share=share):
            more = None if share is None else Share(percent=min(100, share.percent + 10 * rounds))
            return replace(method, threshold=None if threshold is None else threshold * half, share=more)
        case Similarity(threshold=threshold):
            return replace(method, threshold=1 - (1 - threshold) * half)
        case Coverage(share=Share(percent=percent)):
            return replace(method, share=Share(percent=100 - (100 - percent) * half))
        case _:
            return method
