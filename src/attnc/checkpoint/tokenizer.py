"""What reading and writing text needs: tokenizer files, chat template, and where generation ends."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from attnc.checkpoint.config import Config
from attnc.checkpoint.problem import problem

TOKENIZER, SETTINGS, TEMPLATE, GENERATION = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
SPECIAL = ("special_tokens_map.json", "added_tokens.json")

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
SAMPLING = ("do_sample", "temperature", "top_k", "top_p", "repetition_penalty")


def copy(source: Path, folder: Path, config: Config) -> None:
    """Copy tokenizer files from `source` to `folder`; chat template and generation defaults become files of their own."""
    for name in (TOKENIZER, SETTINGS, *SPECIAL):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    template = _template(source)
    if template:
        (folder / TEMPLATE).write_text(template, encoding="utf-8")
    defaults = generation(source, config)
    (folder / GENERATION).write_text(json.dumps(defaults, indent=2) + "\n", encoding="utf-8")


def _template(source: Path) -> str:
    """The chat template: a file of its own, or a part of tokenizer_config.json; of several the one named default."""
    if (source / TEMPLATE).is_file():
        return (source / TEMPLATE).read_text(encoding="utf-8")
    found = _object(source / SETTINGS).get("chat_template")
    if isinstance(found, list):
        found = {str(one["name"]): one["template"] for one in found if isinstance(one, dict)}.get("default")
    return found if isinstance(found, str) else ""


def generation(source: Path, config: Config) -> dict[str, Any]:
    """Token numbers and sampling defaults, from generation_config.json, else the configuration; `eos_token_id` is a list."""
    stated = _object(source / GENERATION)
    found: dict[str, Any] = {}
    for key in TOKENS:
        value = stated.get(key, config.get(key))
        if value is None:
            continue
        numbers = value if isinstance(value, list) else [value]
        if any(isinstance(one, bool) or not isinstance(one, int) or one < 0 for one in numbers):
            raise problem("A525", f"{key} is {value!r}: token numbers are expected", span=config.span(key))
        found[key] = numbers if key == "eos_token_id" else value
    return found | {key: stated[key] for key in SAMPLING if key in stated}


def _object(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is no such file. Errors: A534 where it is damaged."""
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise problem("A534", f"{path.name} holds no JSON object", file=path, help="copy or download the file again")
    return values
