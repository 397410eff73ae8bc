"""Triton's interpreter in a fraction of the time."""

from __future__ import annotations

from typing import Any

import triton.language as tl
from triton.runtime import interpreter

core: Any = tl.core


def quicken() -> None:
    """Let Triton 3.6 to 3.9 interpret quicker, in a process that interprets and does nothing else.

    The functions of triton.language are exchanged for the interpreter's once a launch, where Triton looks through the whole
    language in every call of a device function. And what follows from a type alone is found once for every type, where Triton
    finds it for every tensor.
    """
    interpreter.InterpretedFunction.__call__ = _call
    interpreter._get_np_dtype = _by_name(interpreter._get_np_dtype)
    core._unwrap_if_constexpr = _unwrap(core._unwrap_if_constexpr)
    core.block_type.__init__ = _block_type(core.block_type.__init__)
    core.tensor.__init__ = _tensor(core.tensor.__init__)


def _call(self: Any, *arguments: Any, **named: Any) -> Any:
    """A device function; the language is looked through where a module of it that the function knows is as it was."""
    known = (module for module in self.fn.__globals__.values() if module is tl or module is core)
    if any(core.is_builtin(module.arange) for module in known):
        interpreter._patch_lang(self.fn)
    return self.rewrite()(*arguments, **named)


def _by_name(plain: Any) -> Any:
    """A function of a type, whose name says all of it."""
    known: dict[str, Any] = {}

    def of(found: Any) -> Any:
        if found.name not in known:
            known[found.name] = plain(found)
        return known[found.name]

    return of


def _unwrap(plain: Any) -> Any:
    """Most of what is asked whether it is a constant is none, nor does it hold any."""
    none = frozenset({int, float, bool, str, type(None), core.tensor, core.dtype, core.block_type, core.pointer_type})

    def unwrap(value: Any) -> Any:
        return value if type(value) in none else plain(value)

    return unwrap


def _block_type(plain: Any) -> Any:
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *shape)
        if not all(type(size) is int for size in shape):
            plain(self, element_ty, shape)
        elif key in known:
            self.__dict__.update(known[key])
        else:
            plain(self, element_ty, shape)
            known[key] = dict(vars(self))

    return init


def _tensor(plain: Any) -> Any:
    """Shapes and counts, of the type alone."""
    known: dict[str, dict[str, Any]] = {}

    def init(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 (Triton names it)
        if type.name not in known:
            plain(self, handle, type)
            known[type.name] = {name: value for name, value in vars(self).items() if name not in ("handle", "type", "dtype")}
            return
        self.__dict__.update(known[type.name])
        self.handle, self.type, self.dtype = handle, type, type.scalar

    return init
