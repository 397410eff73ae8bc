"""The codes that importing a checkpoint may give."""

from __future__ import annotations

from attnc.dsl.codes import Code

AGAIN = "Copy or download it again, and compare its size with the original's."

CODES: dict[str, Code] = {
    "A520": Code(
        "no checkpoint at this place",
        "`attnc import` reads a Hugging Face folder with `config.json` and safetensors files, or one GGUF file.",
    ),
    "A521": Code("a configuration that cannot be read", "`config.json` holds one JSON object."),
    "A522": Code(
        "a model type that cannot be imported",
        "llama, mistral, qwen2, qwen3, smollm3, gemma, gemma2, gemma3 text and bamba models are imported, and qwen3_next "
        "without experts. For another one, write the spec by hand and give its weights Llama's names.",
    ),
    "A523": Code(
        "a config key whose value the language cannot say",
        "The import never drops what changes the numbers: the spec would describe another model.",
    ),
    "A524": Code("a config key that is not known", "A key that nobody has judged may change the numbers, so the import stops."),
    "A525": Code("a config key with a value of the wrong kind", "The message says what is expected there."),
    "A526": Code("a damaged safetensors file", f"The file ends early, or its header is none. {AGAIN}"),
    "A527": Code(
        "weights that are missing, or that the model has no place for",
        "Every tensor of the checkpoint has a place in the model, and every place of the model a tensor.",
    ),
    "A528": Code("a weight of another shape", "The configuration and the tensor disagree; the message shows both shapes."),
    "A529": Code("a weight of a number format that is not read", "Quantised checkpoints are not read: take the original one."),
    "A530": Code("a damaged GGUF file", f"The file ends early, or its header is none. {AGAIN}"),
    "A531": Code("a package is missing", "`pip install 'attnc[hf]'` brings what importing needs."),
    "A532": Code(
        "the place to write to is taken",
        "An import replaces only what an import wrote and nobody changed since. Name another file with `-o`.",
    ),
    "A533": Code("the disk refuses", "The system's reason is shown: mostly a full disk or missing rights."),
    "A534": Code("a tokenizer that cannot be read", f"`tokenizer.json` holds one JSON object. {AGAIN}"),
}
