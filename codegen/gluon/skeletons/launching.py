"""What surrounds a kernel on the host: descriptors for the copies, and the launch."""

import functools
import operator

import torch
import triton
from triton import knobs
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from attnc.codegen.gluon.names import bare_launcher, encoded

READY = {}  # key of `run` -> what was compiled, its launcher, and its compile-time arguments
ENCODED = {}  # a view's address and all that copies are told of it -> that, as a launcher takes it
MOST = 4096  # as many are kept; an address that nobody uses any more costs 200 bytes


def width_of(width):
    """A copied row: the width's next power of two, at least the 128 bytes of a swizzled line."""
    return max(64, 1 << (width - 1).bit_length())


def architecture(device):
    """The row of BLOCKS that serves a device."""
    return "sm_90"


def packed_view(x, rows, columns):
    """What a copy is told of x [tokens, heads, width]: where it lies, and the block that one copy takes of one head.

    Copies read addresses and distances that are multiples of 16 bytes; what lies otherwise is copied first.
    """
    token, head, inner = x.stride()
    if inner != 1 or (x.data_ptr() | token * x.element_size() | head * x.element_size()) % 16 or min(token, head) <= 0:
        x = x.clone(memory_format=torch.contiguous_format)
    return x, tuple(x.shape), x.stride(), (rows, 1, columns)


def slots_view(flat, stride, width, rows, columns):
    """The same of a flat storage, seen as [slots, heads, width]: where slots are further apart, heads lie side by side."""
    if flat.numel() < stride:
        flat, stride = flat.new_zeros(width), width
    if flat.data_ptr() % 16:
        flat = flat.clone()
    return flat, (flat.numel() // stride, stride // width, width), (stride, width, 1), (rows, 1, columns)


def described(x, shape, strides, block):
    """A view's descriptor as Triton takes it."""
    layout = gl.NVMMASharedLayout.get_default_for(list(block), gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16)
    return TensorDescriptor(x, list(shape), list(strides), list(block), layout)


def known(view, told):
    """A view's descriptor as a launcher takes it.

    It says an address, a shape, strides, an element type and a block, and nothing of what lies there. So one that was encoded
    for the same numbers is right whatever tensor has come to lie at that address, and none ever has to be thrown away but for
    room. A launch takes its bytes by value: a captured graph keeps its own.
    """
    x, shape, strides, block = view
    key = (x.data_ptr(), shape, strides, block, x.dtype)
    found = ENCODED.get(key)
    if found is None:
        if len(ENCODED) >= MOST:
            ENCODED.clear()
        found = ENCODED[key] = encoded(described(*view), told)
    return found


def hooks(compiled, grid, stream):
    """What a profiler is told of a launch, and whom to call before and after; nobody, where nobody listens."""
    before, after = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    if before.calls or after.calls:
        return compiled.launch_metadata(grid, stream), before, after
    return None, None, None


def run(kernel, programs, views, tensors, numbers, key, constants):
    """kernel[(programs,)](*views, *tensors, *numbers, **constants()), without Triton's long look at every argument.

    It compiles for types, and for which pointers are multiples of 16. Where all are, `key` says the rest, and what was compiled
    for it runs at once, with descriptors that were encoded before.
    """
    pointers = [tensor.data_ptr() for tensor in tensors]
    plain = functools.reduce(operator.or_, pointers) % 16 == 0
    ready = READY.get(key) if plain else None
    if ready is not None:
        compiled, launcher, rest = ready
        found = []
        for view, told in zip(views, compiled.metadata.tensordesc_meta, strict=True):
            found += known(view, told)
        driver, grid = triton.runtime.driver.active, (programs, 1, 1)
        stream = driver.get_current_stream(driver.get_current_device())
        launcher(
            *grid, stream, compiled.function, compiled.packed_metadata, *hooks(compiled, grid, stream),
            *found, *pointers, *numbers, *rest,
        )  # fmt: skip
        return
    settings = constants()
    compiled = kernel[(programs,)](*[described(*view) for view in views], *tensors, *numbers, **settings)
    if plain and compiled is not None:  # where there is no GPU nothing is compiled
        rest = [settings[name] for name in kernel.arg_names[len(views) + len(tensors) + len(numbers) :]]
        READY[key] = compiled, bare_launcher(compiled), rest
