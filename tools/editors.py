"""Writes editors/attn.tmLanguage.json from the language's own words: `python tools/editors.py`."""

from __future__ import annotations

import json
from pathlib import Path

from attnc.pygments_lexer import CONDITIONS, CONSTANTS, ITEMS, KINDS, NUMBER, OPERATORS, RESERVED, SELECTORS

TARGET = Path(__file__).parent.parent / "editors" / "attn.tmLanguage.json"


def grammar() -> str:
    """The TextMate grammar as JSON."""

    def words(names: tuple[str, ...], scope: str, behind: str = "") -> dict[str, str]:
        return {"match": rf"\b({'|'.join(names)})\b{behind}", "name": f"{scope}.attn"}

    blocks = tuple(word for word in RESERVED if word not in ITEMS)
    patterns: list[dict[str, object]] = [
        {"match": "#.*$", "name": "comment.line.number-sign.attn"},
        {
            "match": r"^\s*(mix)\s+([a-z][a-z0-9_]*)",
            "captures": {"1": {"name": "keyword.declaration.attn"}, "2": {"name": "entity.name.function.attn"}},
        },
        {
            "match": r"^\s*(model|driver)\s+([a-z][a-z0-9_]*)",
            "captures": {"1": {"name": "keyword.declaration.attn"}, "2": {"name": "entity.name.type.attn"}},
        },
        {"match": r"\b[a-z][a-z0-9_]*(?=\s*=(?!=))", "name": "variable.parameter.attn"},
        words(ITEMS, "keyword.declaration"),
        words(blocks, "keyword.control"),
        words((*KINDS, *OPERATORS), "support.function"),
        words(SELECTORS, "support.function.selector"),
        words(CONDITIONS, "variable.language"),
        words(CONSTANTS, "constant.language"),
        {"match": rf"(?<![a-z0-9_])({NUMBER})", "name": "constant.numeric.attn"},
        {"match": r">>|\.\.|<=|>=|==|[|+<>=]", "name": "keyword.operator.attn"},
        {"match": r"[(){}\[\],:]", "name": "punctuation.attn"},
    ]
    text = {
        "$schema": "https://raw.githubusercontent.com/martinring/tmlanguage/master/tmlanguage.json",
        "name": "attn",
        "scopeName": "source.attn",
        "fileTypes": ["attn"],
        "patterns": patterns,
    }
    return json.dumps(text, indent=2) + "\n"


if __name__ == "__main__":
    TARGET.parent.mkdir(exist_ok=True)
    TARGET.write_text(grammar(), "utf-8")
