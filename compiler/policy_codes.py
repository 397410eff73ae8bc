"""The codes of policies: files that say what the tuner decided."""

from __future__ import annotations

from attnc.dsl.codes import Code

CODES: dict[str, Code] = {
    "A601": Code(
        "a policy that cannot be read",
        "A policy is JSON with a `schema_version`; `attnc schema policy` prints its shape. A damaged one, or one of another "
        "version, is never half used: `attnc tune solve` writes it anew from the run.",
    ),
    "A602": Code(
        "a policy of another spec",
        "A policy holds for the very spec that it was made for, which it names by the SHA-256 of the canonical text. After a "
        "change of the spec tune again. The message says what differs.",
    ),
    "A603": Code(
        "several policies for one GPU",
        "`attnc build` takes the policy beside the spec that was made for the build's device. Of two it takes neither: name "
        "one with `--policy`, or `--policy none` for the spec's defaults.",
    ),
    "A604": Code(
        "a decision that the spec cannot have",
        "Such as a layer that takes over the choice of an earlier one, where no earlier one makes a choice.",
    ),
    "A605": Code(
        "a table of another model",
        "`attnc tune import` makes a policy of MInference's or DuoAttention's table. Its layers and heads must be the spec's, "
        "and each of its patterns an alternative of a `choose(per = head)`.",
    ),
}
