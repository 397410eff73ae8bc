"""Compiles dsl/grammar.lark into dsl/grammar.json, the tables that reading a spec uses: `python tools/grammar.py`.

lark finds every conflict and makes the LALR(1) table. That takes longer than all the rest of a check, so it is done here,
once for each change of the grammar; a test holds the two files together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lark import Lark
from lark.lexer import PatternStr
from lark.parsers.lalr_analysis import Reduce

DSL = Path(__file__).parent.parent / "dsl"
TABLES = DSL / "grammar.json"


def compiled() -> str:
    """The tables as JSON. Numbers do not depend on the order of any set: states are counted from the start on."""
    lark = Lark((DSL / "grammar.lark").read_text("utf-8"), parser="lalr", lexer="basic", keep_all_tokens=True)
    parser: Any = lark.parser
    table = parser.parser._parse_table
    rules = {rule: number for number, rule in enumerate(lark.rules)}
    order = [table.start_states["start"]]
    for state in order:  # grows while it is read
        shifts = (to for _, (how, to) in sorted(table.states[state].items()) if how is not Reduce)
        order += [to for to in dict.fromkeys(shifts) if to not in order]
    numbers = {state: number for number, state in enumerate(order)}
    states = [
        {symbol: -1 - rules[to] if how is Reduce else numbers[to] for symbol, (how, to) in sorted(table.states[state].items())}
        for state in order
    ]
    spelt = {t.name: t.pattern.value for t in lark.terminals if isinstance(t.pattern, PatternStr)}
    patterns = {t.name: t.pattern.to_regexp() for t in lark.terminals if t.name not in spelt}
    rows = [
        [rule.origin.name, rule.alias or rule.origin.name, len(rule.expansion), rule.options.expand1 and not rule.alias]
        for rule in lark.rules
    ]
    parts = {
        "spelt": spelt,
        "patterns": patterns,
        "ignored": sorted(lark.ignore_tokens),
        "end": numbers[table.end_states["start"]],
        "rules": rows,
        "states": states,
    }
    lines = []
    for name, part in parts.items():
        if isinstance(part, list) and name != "ignored":
            lines.append(f'"{name}": [\n' + ",\n".join(json.dumps(row, separators=(",", ":")) for row in part) + "\n]")
        else:
            lines.append(f'"{name}": {json.dumps(part)}')
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    TABLES.write_text(compiled(), "utf-8")
