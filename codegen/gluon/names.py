"""Names of Gluon and of Triton's launcher that moved between Triton 3.6 and 3.9, under the newer one's.

Emitted kernels hold what they use of this text themselves.
"""

import copy

from triton.backends.nvidia import driver as nvidia
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

block_barrier = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier
tma_load = tma.async_load if hasattr(tma, "async_load") else tma.async_copy_global_to_shared
tma_store = tma.async_store if hasattr(tma, "async_store") else tma.async_copy_shared_to_global


def bare_launcher(compiled):
    """The launcher of a compiled kernel without the function around it that encodes descriptors anew at every launch.

    In place of a descriptor it takes what `encoded` returns.
    """
    launcher = copy.copy(compiled.run)
    around = launcher.launch
    inside = dict(zip(around.__code__.co_freevars, around.__closure__, strict=True))
    launcher.launch = inside["launcher"].cell_contents
    return launcher


def encoded(descriptor, told):
    """What a launcher takes for a descriptor: the 128 bytes that the copies read, shape and strides. `told`: its metadata."""
    make = nvidia.make_tensordesc_arg
    return tuple(make(descriptor, told, *[None] * (make.__code__.co_argcount - 2)))  # 3.9: what else is launched with
