"""What surrounds a kernel on the host: descriptors for the copies, and the launch."""

import torch
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

READY = {}  # key of `run` -> what was compiled, and its compile-time arguments
LAYOUTS = {}  # (rows, columns, element type) -> how a copied block lies in shared memory


def width_of(width):
    """A copied row: the width's next power of two, at least the 128 bytes of a swizzled line."""
    return max(64, 1 << (width - 1).bit_length())


def architecture(device):
    """The row of BLOCKS that serves a device."""
    return "sm_90"


def aligned(x):
    """x where the copies can read it, at addresses and distances of 16 bytes; else a copy."""
    *outer, inner = x.stride()
    good = x.data_ptr() % 16 == 0 and inner == 1 and all(n > 0 and n * x.element_size() % 16 == 0 for n in outer)
    return x if good else x.clone(memory_format=torch.contiguous_format)


def described(x, rows, columns):
    """What a copy is told of x [tokens, heads, width]: its place, and the block that one copy takes of one head.

    Made without the checks of TensorDescriptor's own, which take longer than a launch: `aligned` has seen to them.
    """
    block = [rows, 1, columns]
    key = (rows, columns, x.dtype)
    if key not in LAYOUTS:
        LAYOUTS[key] = gl.NVMMASharedLayout.get_default_for(block, gl.bfloat16 if x.dtype == torch.bfloat16 else gl.float16)
    made = TensorDescriptor.__new__(TensorDescriptor)
    made.base, made.shape, made.strides, made.block_shape, made.layout = x, list(x.shape), list(x.stride()), block, LAYOUTS[key]
    made.padding, made.round_f32_to_tf32 = "zero", False
    return made


def run(kernel, programs, views, tensors, numbers, key, constants):
    """kernel[(programs,)](*views, *tensors, *numbers, **constants()), without Triton's long look at every argument.

    It compiles for types, and for which pointers are multiples of 16. Where all are, `key` says the rest, and what was compiled
    for it runs at once; the views are told to the copies as ever.
    """
    pointers = [tensor.data_ptr() for tensor in tensors]
    plain = all(pointer % 16 == 0 for pointer in pointers)
    if plain and key in READY:
        compiled, rest = READY[key]
        compiled[programs, 1, 1](*views, *pointers, *numbers, *rest)
        return
    settings = constants()
    compiled = kernel[(programs,)](*views, *tensors, *numbers, **settings)
    if plain and compiled is not None:  # where there is no GPU nothing is compiled
        READY[key] = compiled, [settings[name] for name in kernel.arg_names[len(views) + len(tensors) + len(numbers) :]]


def stored_rows(flat, stride, width):
    """A flat storage as [slots, heads, width]: heads side by side where slots are further apart than one is wide."""
    if flat.numel() < stride:
        return flat.new_zeros(1, 1, width)
    return aligned(flat)[: flat.numel() // stride * stride].view(-1, stride // width, width)
