"""The codes that a built folder's errors carry: a title and a page each. Imports nothing, so that `attnc explain` is quick."""

from __future__ import annotations

CODES: dict[str, tuple[str, str]] = {
    "A507": (
        "a crop that would not be exact",
        "A ring has overwritten old tokens and a state has forgotten them, so only growing caches go back to fewer tokens. "
        "Take a `snapshot()` before, and `restore` it.",
    ),
    "A508": (
        "more tokens than the cache has room for",
        "`new_cache(batch, max_length)` says how many tokens a sequence may have, prompt and answer together.",
    ),
    "A509": (
        "a model that looks ahead keeps no cache",
        "With `causal = false` later tokens would change what was said of earlier ones, so such a model reads whole texts.",
    ),
    "A541": (
        "no such file of weights",
        "Build with `--weights DIR` or `--init SEED`, or copy `model.safetensors` into the folder.",
    ),
    "A542": ("not a safetensors file, or a damaged one", "Copy the file again; the message says what is wrong with it."),
    "A543": ("tensors that the model needs are missing", "The message names them; the model's `state_dict()` lists all names."),
    "A544": ("tensors that the model has no place for", "Nothing is dropped silently: take them out of the file."),
    "A545": ("tensors of another shape", "The file belongs to a model of other sizes; the message shows both shapes."),
    "A546": ("tensors of another sort of numbers", "Floats go to floats and whole numbers to whole numbers."),
    "A547": ("tensors that the model ties, and that differ", "With `tie = true` head and embedding are one tensor."),
    "A550": (
        "a tuning.json that cannot be used",
        "`attnc build` writes it. Build again, or delete it: kernels then take the blocks in their own files.",
    ),
    "A551": (
        "fast weights that diverge",
        "The weights of a memory, or what it returned, are no numbers any more: with these rates every chunk overshoots. The "
        "message names the layer, the sequence and the token. Lower `lr`, normalise keys with `qk_norm = l2`, or let weights "
        "decay. The cache is as it was before the call.",
    ),
}

MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def is_memory(error: BaseException) -> bool:
    """Whether memory ended: a MemoryError, torch.OutOfMemoryError, or a RuntimeError of PyTorch in one of these words."""
    said = isinstance(error, RuntimeError) and any(word in str(error) for word in MEMORY)
    return said or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
