"""The codes that training may give."""

from __future__ import annotations

from attnc.dsl.codes import Code

CODES: dict[str, Code] = {
    "A570": Code(
        "a recipe that cannot be carried out",
        "The message says which word of `recipe` it is, and what the model lacks for it or attnc cannot do yet. Nothing was "
        "trained: a word that is passed over would make another experiment than the one that is written down.",
    ),
    "A571": Code(
        "a loss that diverged",
        "The message names the step, and the layer in which the first number that is not finite appeared, while the loss was "
        "computed or on its way back. That step changed nothing, and the last checkpoint is one whose next loss was finite: "
        "train on from it with a lower `--lr`, a longer `--warmup` or a smaller `--clip`.",
    ),
    "A572": Code(
        "a checkpoint of another model",
        "`--resume` goes on with weights and moments of this very spec. After a change of the spec begin a new run; the "
        "message says what differs.",
    ),
    "A573": Code(
        "a checkpoint that cannot be read",
        "It is written beside its place and renamed, so a killed run leaves none: somebody changed it, or the disk did. The "
        "one before is kept: move the damaged one away and `--resume` goes on from there.",
    ),
    "A575": Code(
        "examples that do not fit the model",
        "They are longer than the model's `context`, or hold tokens beyond its vocabulary.",
    ),
    "A576": Code(
        "not enough memory",
        "What a step needs grows with the examples held at once times their length. The message says what to lower; "
        "`--accumulate` makes up for a smaller `--batch`, step for step.",
    ),
    "A577": Code(
        "nothing to resume, or another run",
        "`--resume` goes on with the last run of the folder, with the settings that it began with. Others are a new run: "
        "leave `--resume` out, and it starts from the weights that the folder has now.",
    ),
    "A578": Code(
        "no teacher can be made",
        "`teacher = full` is the same weights with every layer full. A layer without a softmax has no such weights, and a "
        "folder whose spec.attn was changed no longer holds the spec that it was built from.",
    ),
}
