"""Which tensors move: what a recipe's `freeze`, `train` and `lora` say of each, by its name."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from attnc.compiler.recipe import Part, Recipe

LETTERS = re.compile(r"\.([qkvo])_(?:proj|conv)\.")
LATENT = {"kv_a_proj_with_mqa": ("k", "v"), "kv_b_proj": ("k", "v")}
"""`kv_latent`: the projections that keys and values share."""

NORM = re.compile(r"norm\.(?:weight|bias)$")
ROUTER = re.compile(r"\.(?:router|join|indexer|selector)\.")
MEMORY = re.compile(r"\.memory\b")
NET = re.compile(r"^(model\.layers\.\d+\.mixer\..+\.)net\.(?:map_\d|gate|up|down)$")
"""A memory's net, and before it where its tensors lie, whatever the mix is called."""


@dataclass(frozen=True)
class Moves:
    """Names of tensors: those that train, those beside which LoRA trains, and the parts of the recipe that name none."""

    train: frozenset[str]
    lora: frozenset[str]
    empty: tuple[tuple[str, Part], ...]


def parts(name: str, nets: tuple[str, ...] = ()) -> tuple[tuple[Part, ...], ...]:
    """What a tensor belongs to, the narrowest first; parts in one tuple are equally narrow. `nets`: where memories lie.

    A norm of q or k is a norm of the attention; routers and memories stand beside the attention, not in it.
    """
    if name.startswith(("model.embed_tokens.", "lm_head.")):
        return (("embedding",), ("all",))
    if ROUTER.search(name):
        return (("router",), ("all",))
    if MEMORY.search(name) or name.startswith(nets):
        return (("memory",), ("all",))
    if ".mlp." in name:
        return (("ffn",), ("all",))
    inside = re.match(r"model\.layers\.\d+\.(?:self_attn|mixer)\.", name) is not None
    if NORM.search(name):
        return (("norm",), ("attention",), ("all",)) if inside else (("norm",), ("all",))
    assert inside, f"{name} belongs to no part"
    found = LETTERS.search(name)
    letters = (found.group(1),) if found else next((both for word, both in LATENT.items() if f".{word}." in name), ())
    return (letters, ("attention",), ("all",)) if letters else (("attention",), ("all",))  # type: ignore[return-value]


def moves(recipe: Recipe | None, names: Iterable[str]) -> Moves:
    """Of each tensor the narrowest part that a list names decides; of equally narrow ones `lora`, then `train`, then `freeze`.

    What no list names trains, unless `train` or `lora` says what does.
    """
    lists: dict[str, tuple[Part, ...]] = {
        word: () if recipe is None else getattr(recipe, word) or () for word in ("train", "lora", "freeze")
    }
    rest = not (lists["train"] or lists["lora"])
    every = tuple(names)
    nets = tuple({found[1] for found in map(NET.match, every) if found})
    chosen: dict[str, set[str]] = {"train": set(), "lora": set()}
    for name in every:
        level = next((lv for lv in parts(name, nets) if any(part in named for part in lv for named in lists.values())), None)
        if level is None:
            chosen["train"] |= {name} if rest else set()
            continue
        for word, there in chosen.items():
            if any(part in lists[word] for part in level):
                there.add(name)
    known = {part for name in every for level in parts(name, nets) for part in level}
    empty = tuple((word, part) for word, named in lists.items() for part in named if part not in known)
    return Moves(frozenset(chosen["train"] - chosen["lora"]), frozenset(chosen["lora"]), empty)
