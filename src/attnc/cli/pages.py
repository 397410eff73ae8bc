"""The pages behind the codes, from all rooms: what `attnc explain` shows and docs/diagnostics.md holds."""

from __future__ import annotations

from typing import NamedTuple

from attnc.dsl.examples import MODEL, Example

SECTIONS = {
    "A0": "Syntax",
    "A1": "Names, values and bounds",
    "A2": "Ownership and shapes",
    "A3": "Causality",
    "A4": "Plans",
    "A5": "Files and weights",
    "A6": "Policies",
}


class Page(NamedTuple):
    """What is known about one code."""

    code: str
    title: str
    text: str
    example: Example | None


def pages() -> dict[str, Page]:
    """All codes in order, each with its page."""
    from attnc.checkpoint import codes as checkpoint
    from attnc.codegen import problem
    from attnc.compiler import codes as checker
    from attnc.compiler import examples as meaning
    from attnc.compiler import policy_codes as deciding
    from attnc.dsl import codes as reader
    from attnc.dsl import examples as syntax
    from attnc.runtime.codes import CODES as RUNNING
    from attnc.tasks import codes as asking
    from attnc.train import codes as training
    from attnc.tune import codes as tuning

    examples = {**syntax.EXAMPLES, **meaning.EXAMPLES}
    ours = (reader, checker, deciding, problem, checkpoint, asking, training, tuning)
    rooms = (*(room.CODES for room in ours), RUNNING)
    found = [Page(code, title, text, examples.get(code)) for room in rooms for code, (title, text) in room.items()]
    assert len({page.code for page in found}) == len(found), "a code of two rooms"
    return {page.code: page for page in sorted(found)}


def markdown() -> str:
    """docs/diagnostics.md."""
    lines = [
        "# Diagnostics",
        "",
        "Every mistake that attnc reports has a code. `attnc explain CODE` prints its page in a terminal. An example "
        "that shows no `model` stands below this one:",
        "",
        f"```attn\n{MODEL}```",
    ]
    section = ""
    for page in pages().values():
        if page.code[:2] != section:
            section = page.code[:2]
            lines += ["", f"## {section}: {SECTIONS[section].lower()}"]
        lines += ["", f"### {page.code}: {page.title}", "", page.text]
        if page.example:
            lines += [
                "",
                "Wrong:",
                "",
                f"```attn\n{page.example.wrong}```",
                "",
                "Right:",
                "",
                f"```attn\n{page.example.right}```",
            ]
    return "\n".join(lines) + "\n"
