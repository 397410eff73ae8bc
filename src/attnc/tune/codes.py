"""The codes that tuning may give."""

from __future__ import annotations

from attnc.dsl.codes import Code

CODES: dict[str, Code] = {
    "A610": Code(
        "a run that cannot be read",
        "A run is a folder with `run.json`, the spec, and `journal.jsonl`, one measurement a line. A process that was "
        "killed may leave half a line at the end, which is measured again; anything else that is no measurement was "
        "changed by somebody. The message names the line: remove it, and `attnc tune score` measures it anew.",
    ),
    "A611": Code(
        "nothing to decide",
        "`attnc tune` decides each `choose` and each `budget` that may move after training. The spec has none, or more "
        "than can be measured; `--points` says how many values of a budget are tried.",
    ),
    "A612": Code(
        "a run of something else",
        "A run goes on with the spec, the weights, the data and the seed that it began with, whose SHA-256 it keeps. Name "
        "another folder with `-o` for other ones.",
    ),
    "A613": Code(
        "what was not measured",
        "The message says what is lacking: some losses or costs, which `attnc tune score` adds to the run, or another "
        "probe: `coverage` asks for `mass`, `similarity` for `similarity`, `retrieval_score` for `retrieval`, "
        "`trained_gate` for `gate`.",
    ),
    "A614": Code(
        "limits that nothing keeps",
        "No setting of the spec has so little cost or loss. The message says how far one can get.",
    ),
    "A615": Code(
        "a choice that these texts never meet",
        "Losses are measured by reading texts. A `choose` below a `when` that holds for longer texts, or while decoding, "
        "changes nothing there, and would seem to cost nothing. Measure at lengths where it counts.",
    ),
    "A616": Code(
        "weights that lack a tensor",
        "Every alternative of a `choose` is run with the weights of one checkpoint. One whose weights are nowhere has to "
        "be trained first: `attnc train` of a folder that was built with it.",
    ),
}
