"""Which layers choose keys, and which take over the choice of an earlier one."""

from __future__ import annotations

from collections.abc import Collection, Sequence


def reuse(similarity: Sequence[Sequence[float]], threshold: float, dense: Collection[int] = ()) -> tuple[int, ...]:
    """For each layer the one whose choice it takes, itself where it chooses: as few of those as can be, then the most similar.

    similarity  [i][j], how much of the choice of layer j that of an earlier layer i has; a layer takes over the choice of the
                nearest layer before it that chooses, where they are at least `threshold` alike
    dense       layers that choose in any case

    Exact, as both sums are of single layers. Source: HyLRA (arXiv 2602.00777).
    """
    layers = len(similarity)
    states: dict[int, tuple[tuple[int, float], tuple[int, ...]]] = {0: ((1, 0.0), (0,))}
    for layer in range(1, layers):
        (count, total), path = min(states.values(), key=lambda one: (one[0][0], -one[0][1]))
        following = {layer: ((count + 1, total), (*path, layer))}
        for source, ((number, score), way) in states.items():
            alike = similarity[source][layer]
            if layer not in dense and alike >= threshold:
                following[source] = ((number, score + alike), (*way, source))
        states = following
    return min(states.values(), key=lambda one: (one[0][0], -one[0][1]))[1]
