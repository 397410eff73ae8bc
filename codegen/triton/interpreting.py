"""Triton's interpreter in a third of the time."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def quicken() -> None:
    """Exchange the functions of triton.language for the interpreter's once a launch, not in each call of a device function.

    Triton 3.6 to 3.9 looks through the whole language in every such call. A call still does where a module of the language
    that it knows is as it was. For processes that interpret and do nothing else.
    """
    interpreter.InterpretedFunction.__call__ = _call


def _call(self: Any, *arguments: Any, **named: Any) -> Any:
    known = (module for module in self.fn.__globals__.values() if module is tl or module is tl.core)
    if any(tl.core.is_builtin(module.arange) for module in known):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*arguments, **named)
