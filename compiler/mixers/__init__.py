"""The kinds of the language: one file each, named like the kind. A new kind is its file and a word here.

A kind's file is read when the kind is met: making all parameter classes takes longer than checking a spec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache
from importlib import import_module

from attnc.compiler.mixer import Kind, Mixer

KINDS = (
    "full",
    "window",
    "sink",
    "block_local",
    "stride",
    "power_of_two",
    "persistent",
    "summary",
    "codebook",
    "routed",
    "linear",
    "ssm",
    "memory",
    "recurrent",
    "conv",
    "feedback",
    "insert",
    "merge",
)


class _Mixers(Mapping[str, Mixer]):
    def __getitem__(self, kind: str) -> Mixer:
        return _mixer(kind)

    def __contains__(self, kind: object) -> bool:
        return kind in KINDS

    def __iter__(self) -> Iterator[str]:
        return iter(KINDS)

    def __len__(self) -> int:
        return len(KINDS)


MIXERS: Mapping[str, Mixer] = _Mixers()


def stands(kind: Kind) -> bool:
    """Whether a key set stands for what the rest of its union does not show, in a launch of its own."""
    return MIXERS[kind.kind].condensed is not None and MIXERS[kind.kind].stands(kind)


@cache
def _mixer(kind: str) -> Mixer:
    if kind not in KINDS:
        raise KeyError(kind)
    mixer: Mixer = import_module(f"attnc.compiler.mixers.{kind}").MIXER
    assert mixer.name == kind, f"mixers/{kind}.py declares {mixer.name}"
    return mixer
