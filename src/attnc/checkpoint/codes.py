"""Titles of the codes that importing a checkpoint may give."""

from __future__ import annotations

CODES = {
    "A520": "no checkpoint at this place",
    "A521": "a configuration that cannot be read",
    "A522": "a model type that cannot be imported",
    "A523": "a config key whose value the language cannot say",
    "A524": "a config key that is not known",
    "A525": "a config key with a value of the wrong kind",
    "A526": "a damaged safetensors file",
    "A527": "weights that are missing, or that the model has no place for",
    "A528": "a weight of another shape",
    "A529": "a weight of a number format that is not read",
    "A530": "a damaged GGUF file",
    "A531": "a package is missing",
    "A532": "the place to write to is taken",
    "A533": "the disk refuses",
    "A534": "a tokenizer that cannot be read",
}
