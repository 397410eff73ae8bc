"""The checker's codes: A1 names and bounds, A2 ownership and shapes, A3 causality."""

from __future__ import annotations

from attnc.dsl.codes import Code

CODES: dict[str, Code] = {
    "A100": Code("unknown name", "A mixer is a kind of the language or a mix that the file defines before it uses it."),
    "A101": Code("not built yet", "The word belongs to the language, but this version of the compiler has no kernels for it."),
    "A102": Code("unknown key", "A kind, a block or a brace takes only the keys that its row in docs/language.md names."),
    "A103": Code("wrong sort of value", "Each key says what it takes: a whole number, a share, one of some words, a list."),
    "A104": Code("number out of bounds", "Every number has bounds, both included, so that no spec can ask for absurd sizes."),
    "A105": Code(
        "something is missing", "A required setting, argument or item is absent; only what has a default may be left out."
    ),
    "A106": Code("said twice", "A key, a mix, a case or an item may be given once; the second one would hide the first."),
    "A107": Code(
        "a budget cannot stand here",
        "`budget(lo..hi, default = x)` stands for a number that the tuner may move. Numbers that decide shapes of trained "
        "weights, or that the kind's row does not mark, cannot be budgets.",
    ),
    "A108": Code("a budget that contradicts itself", "In `budget(lo..hi, default = x)` lo <= x <= hi, all of one sort."),
    "A109": Code("a name that is taken", "A mix may not take the name of a kind or of a word of the language."),
    "A110": Code("too large an expression", "A mix may name others, but the whole has at most 256 kinds and 64 levels."),
    "A111": Code("`--set` cannot do this", "`--set model.KEY=VALUE` replaces one setting of the model, and nothing else."),
    "A112": Code(
        "arguments that do not go together",
        "Some arguments exclude one another, and some need one another; the row of the kind in docs/language.md says which.",
    ),
    "A113": Code(
        "no mask to draw",
        "`attnc show --mask` draws key sets whose positions decide who sees whom. A state mixer sees no keys one by one, and a "
        "routed one picks them by content.",
    ),
    "A200": Code("two rules for a layer", "Every layer is owned by exactly one rule; the order of rules decides nothing."),
    "A201": Code("layers without a rule", "Every layer needs a rule; `else` takes all the others."),
    "A202": Code(
        "a selector that fits no layer", "Layers count from 0 to layers - 1, and a rule must pick at least one of them."
    ),
    "A203": Code(
        "a key set where a mixer is wanted, or the reverse",
        "`|` joins key sets under one softmax. A key set with attributes in braces is a mixer already, so the braces go "
        "after the whole union: `(A | B) { key = value }`.",
    ),
    "A204": Code("sizes that do not divide", "Heads share KV heads evenly, blocks tile windows evenly, widths split evenly."),
    "A205": Code(
        "two owners of a KV group", "All query heads that read one KV head have one owner, and each group has one case."
    ),
    "A206": Code(
        "KV groups without an owner", "The cases of `heads` cover all KV groups of the layer; `else` takes the others."
    ),
    "A207": Code("a share that is no whole number of groups", "A share of a layer's KV groups must come out even."),
    "A208": Code(
        "alternatives that cannot share weights",
        "The cases of heads, when and choose use the same q, k, v and o, so their heads and widths agree.",
    ),
    "A209": Code(
        "nothing earlier to take q and k from", "`qk_from = previous` needs an earlier layer with q and k of its own."
    ),
    "A210": Code("`when` cases that do not decide", "The first case that holds is taken, so `else` comes last and is there."),
    "A211": Code(
        "a condition that cannot be tested", "Conditions compare `length`, `phase` or `dim` with a number or a phase."
    ),
    "A212": Code("a rotated width that does not fit", "Rotary pairs need an even rope_dim, at most head_dim."),
    "A213": Code("an attribute that has no meaning here", "The attribute belongs to another kind or contradicts a neighbour."),
    "A214": Code("a block where it cannot stand", "Some blocks decide per head or per token and cannot hold one another."),
    "A215": Code(
        "a change of the sequence where it cannot stand",
        "`insert` and `merge` make a new sequence, which the rest of the layer and all later layers work on. So they stand "
        "first in a layer's chain, before a mixer: `insert(landmark, every = n) >> A`. They stand in no block, sum, gate, "
        "select or context.",
    ),
    "A216": Code(
        "a context without a memory",
        "`context(M, segment = n)` reads from M and teaches it, so M is `memory(...)`, perhaps with attributes.",
    ),
    "A300": Code("a kind that looks back only", "The kind is defined for causal order and cannot see both directions."),
    "A301": Code(
        "training would leak",
        "A choice of keys that depends on later tokens tells a token what comes next, so a loss on the next token would be too "
        "low. Choose causally in training, `when { phase == train: full, else: ... }`, or accept it: `selection = noncausal`.",
    ),
    "A302": Code(
        "prefill in chunks would change results",
        "A choice by a block of queries, or by the last of a prompt, is another one where the prompt comes in pieces. A "
        "block's choice is the same in chunks that are whole blocks.",
    ),
    "A303": Code(
        "cached prefixes would change results",
        "Keys and values of a prefix depend on what came after it where the last queries choose, so another text with the same "
        "prefix cannot take them. A block's choice is the same in prefixes that are whole blocks.",
    ),
    "A304": Code(
        "a choice that looks ahead",
        "Clusters take their best tokens of the whole sequence, so later tokens decide what earlier ones see. "
        "`selection = noncausal` accepts that.",
    ),
    "A309": Code(
        "a choice among all tokens in a causal model",
        "`merge` and `select` compare all tokens of a sequence with one another, so in a causal model earlier outputs would "
        "depend on later tokens. Both are for encoders, with `causal = false`.",
    ),
    "A519": Code(
        "a device table that cannot be used",
        "`attnc calibrate` writes tables into the user's folder for settings, and `--device` finds them there. This one is "
        "damaged or of another version; the message says how. Measure again, or remove the file.",
    ),
}
