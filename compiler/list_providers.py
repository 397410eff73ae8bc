"""What generated kernels can say of keys that content chooses: which lists they read, and which they make."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields, replace

from attnc.compiler.cost import Launch, Seen, Work, Workload, choosing, tiled
from attnc.compiler.families import Listed, Selector, Softmax
from attnc.compiler.spec import Phase

UNCOMPARED = "which no GPU has compared yet"
"""How kernels run what `uncompared` names: after every other provider that can, whatever they would cost."""

MOST_MEMBERS = 64
"""Query heads that share a list: all of them stand in one tile."""

BLOCK = 64
"""Keys, and queries, of the blocks in which kernels read keys at chosen distances."""

SCORED = 7
"""Bytes that take as long as one head's score of a run: an H200 took 2.6 ms for 5.4e8 of them, and 1.1 for 2.7e8."""

GATHERING = 15
"""Launches that turn lists round, units to queries."""

MADE = ("own", "mean", "bounds", "summary")
NUMBERS = frozenset({"unit", "span", "step", "lse", "many", "every", "top_k", "at_least", "at_most", "all_seen"})
WORDS = frozenset({"keys", "score", "shared", "heads", "fold", "asks", "overlap", "refresh", "dense", "previous"})
"""What the kernels that choose know of a selector; of all else its default."""


def unread(launch: Launch, groups: tuple[Seen, ...]) -> str | None:
    """Why no generated kernel reads the lists of these groups; None where one does."""
    if launch.softplus:
        return "its lists are read by a softmax"
    summaries = {
        (one.span, one.step)
        for variant in launch.variants
        for group in variant.groups
        for one in group.selectors
        if one.keys == "chunks"
    }
    if len(summaries) > 1:
        return "its kernels read chunks of one size"
    for group in groups:
        if (reason := unjoined(chosen(group.selectors))) is not None:
            return reason
        if summaries and any(one.all_seen is not None for one in group.selectors):
            return "its kernels read all tokens for some queries where nothing has a summary"
        if group.intervals is not None and summaries and (group.intervals.strides or group.intervals.powers):
            return "its kernels read chunks beside one stretch of tokens, not beside far patterns"
        for one in group.selectors:
            if (reason := unlisted(one)) is not None:
                return reason
            if group.intervals is not None and not group.intervals.causal:
                return "its kernels read lists under causality"
            if one.shared != "head" and launch.ratio > MOST_MEMBERS:
                return f"at most {MOST_MEMBERS} query heads of a KV head share a tile"
    return None


def unjoined(choices: list[Selector]) -> str | None:
    """Why kernels do not read several choices under one softmax."""
    if len(choices) > 2 or sum(one.diagonals for one in choices) > 1:
        return "its kernels read two choices in a union, of distances one, not more"
    if len(choices) > 1 and any(one.all_seen is not None for one in choices):
        return "its kernels read all tokens for some queries where there is one choice"
    if len(choices) > 1 and any(one.refresh for one in choices):
        return "its kernels read a choice that holds for several steps without another"
    return None


def ungraded(groups: tuple[Seen, ...]) -> str | None:
    """Why no generated kernel goes back over what content chooses for these groups."""
    for group in groups:
        choices = chosen(group.selectors)
        if len(choices) > 1 or any(one.diagonals for one in choices):
            return "its kernels go back over one choice of units, not over distances nor several choices"
    return None


def uncompared(groups: tuple[Seen, ...], phase: Phase) -> str:
    """What of the kernels that these groups need no GPU has compared in 16 bits, as words behind a provider; or nothing."""
    selectors = [one for group in groups for one in group.selectors]
    kinds = {
        "gradients over lists": phase == "train",
        "several choices in a union": any(len(group.selectors) > 1 for group in groups),
        "distances": any(one.diagonals for one in selectors),
        "keys that stand for chunks": any(one.keys == "chunks" for one in selectors),
        "queries that see everything": any(one.all_seen is not None for one in selectors),
        "far patterns beside lists": any(
            group.intervals and (group.intervals.strides or group.intervals.powers) for group in groups
        ),
    }
    found = [kind for kind, asked in kinds.items() if asked and selectors]
    return f"{UNCOMPARED}: {', '.join(found)}" if found else ""


def chosen(selectors: Iterable[Selector]) -> list[Selector]:
    """Those that choose, in the order in which kernels read what they choose: distances last."""
    return sorted((one for one in selectors if one.keys != "chunks"), key=lambda one: one.diagonals)


def chunks_of(groups: Iterable[Seen]) -> tuple[int, int] | None:
    """The span and the step of the chunks for which keys stand in some groups; None where there are none."""
    return next(((one.span, one.step) for group in groups for one in group.selectors if one.keys == "chunks"), None)


def unlisted(one: Selector) -> str | None:
    """Why kernels do not read what a selector chooses."""
    if one.diagonals and one.asks != "last":
        return "its kernels read distances that all queries share"
    if one.unit > 65536:
        return "units of more than 65536 keys do not fit its lists"
    return None


ROW_IN_GLUON, UNIT_IN_GLUON = 128, 64
"""Queries that share a list at least, which are a tile; keys of which units are multiples, as blocks are copied."""


def unread_in_gluon(launch: Launch, groups: tuple[Seen, ...]) -> str | None:
    """Why no kernel in Gluon reads the lists of these groups; None where one does."""
    reason = unread(launch, groups)
    for one in (one for group in groups for one in group.selectors):
        if one.diagonals or one.keys == "chunks" or any(len(group.selectors) > 1 for group in groups):
            reason = reason or "its kernel reads one choice of units of keys"
        if one.unit % UNIT_IN_GLUON:
            reason = reason or f"its kernel reads units of multiples of {UNIT_IN_GLUON} keys"
        if one.asks == "each" or (one.asks == "block" and one.many < ROW_IN_GLUON):
            reason = reason or f"its kernel reads lists that {ROW_IN_GLUON} queries or more share"
    return reason


def unmade(launch: Launch, groups: tuple[Seen, ...]) -> str | None:
    """Why no generated kernel makes the lists of these groups; None where one does."""
    reason = unread(launch, groups)
    for group in groups:
        for one in group.selectors:
            reason = reason or (None if one.keys == "chunks" else unchosen(one))
            far = group.intervals is not None and bool(group.intervals.strides or group.intervals.powers)
            if far and one.overlap != "ranked":
                reason = reason or "its kernels look for shown units in one stretch, not in far patterns"
    return reason


def unchosen(one: Selector) -> str | None:
    """Why kernels do not choose by a selector."""
    if one.keys not in MADE:
        return f"its kernels score by keys of the layer, not by {one.keys} ones"
    if one.asks == "last":
        return "its kernels score for one query, or for a block's mean"
    if one.top_k is None:
        return "its kernels keep so many of the best, not a share of the mass nor all above a score"
    for field in fields(one):
        if field.name not in NUMBERS | WORDS and getattr(one, field.name) != field.default:
            return f"its kernels do not know what {field.name} asks for"
    return None


def listed(softmax: Softmax, selectors: tuple[Selector, ...]) -> list[Listed]:
    """The kernels that read what selectors choose; tokens that are seen until the next choice are a near interval."""
    found, beside = [], 0
    for one in chosen(selectors):
        nears = max(1, softmax.nears) if one.refresh or one.all_seen else softmax.nears
        own = replace(softmax, exponent=None, nears=nears, sink_logit=softmax.sink_logit)
        unit = BLOCK if one.diagonals else one.unit
        found.append(Listed(own, unit, one.shared == "head", one.diagonals, beside))
        beside = one.unit
    return found


def reading(launch: Launch, groups: tuple[Seen, ...], phase: Phase, load: Workload) -> Work:
    """What kernels do over lists: the kept share of the keys, and where each query has a list of its own, keys read for every
    list, or queries gathered and results left for every unit of one, whichever is less.
    """
    work, moved, gathered = tiled(launch, groups, phase, load), 0.0, phase == "train"
    for group in groups:
        for one in group.selectors if phase != "decode" else ():
            if one.asks == "each":
                gathered = True
                members = 1 if one.shared == "head" else launch.ratio
                lists = group.kv_heads * launch.ratio // members * load.length
                keys = one.unit * (launch.head_dim + launch.value_dim)
                queries = members * (launch.head_dim + 2 * launch.value_dim)
                moved += lists * one.kept(load.length) / one.unit * min(keys, queries)
    passes = 3 if phase == "train" else 1
    launches = work.launches + GATHERING * gathered
    return replace(work, bytes=work.bytes + passes * load.batch * load.width * moved, launches=launches)


def scoring(launch: Launch, groups: tuple[Seen, ...], phase: Phase, load: Workload) -> Work:
    """What kernels do for a choice: runs are read, scores that heads share written once and read once, lists written."""
    work, moved, count = choosing(launch, groups, phase, load), 0.0, 0
    for group in groups:
        for one in group.selectors:
            rows = one.rows(1 if phase == "decode" else load.length)
            choosers = one.choosers(group.kv_heads, launch.ratio)
            keys = load.width * group.kv_heads * launch.head_dim * one.runs(load.length)
            scores = SCORED * group.kv_heads * launch.ratio * rows * one.runs(load.length) + 8 * choosers * rows * one.runs(
                load.length
            )
            moved += keys + scores + 4 * choosers * rows * one.kept(load.length) / one.unit
            count += 3 if one.score == "softmax" else 2
    return replace(work, bytes=load.batch * moved, launches=count)
