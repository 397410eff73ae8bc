"""The generated kernels of one launch: what they are made for, what they are given, and the operators that run them.

Legend: T new tokens of S sequences; H query heads, G KV heads; D, E key, value width; R numbers of a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from .autocast import cast, word
from .batch import Batch
from .intervals import Form
from .keys import KeyPart
from .operators import Functions, at_once, define, dense, device_of, name_of
from .sizes import DECODE_TOKENS

DTYPES = (torch.bfloat16, torch.float16, torch.float32)


class Kernels:
    """A `Kernel` (softmax.py) that runs generated code; o and the log-sum-exp have gradients in q, k, v and the sink logit.

    Under `torch.autocast` q, k and v are taken in its dtype. Raises ValueError, naming the argument, for what does not fit.
    """

    def __init__(
        self,
        name: str,
        functions: Functions,
        form: Form,
        q_width: int,
        v_width: int,
        group: int,
        exponent: float | None = None,
        dtypes: Sequence[torch.dtype] = DTYPES,
    ) -> None:
        self.dtypes = dtypes
        self.form, self.q_width, self.v_width, self.group, self.exponent = form, q_width, v_width, group, exponent
        self.functions, self.operators = functions, define(name, functions, form, v_width, exponent)

    @classmethod
    def of(cls, prefill: ModuleType, decode: ModuleType, queries: ModuleType, keys: ModuleType) -> Kernels:
        """The launch of four kernel files; the constants on top of each are the same."""
        name = name_of([str(module.__file__) for module in (prefill, decode, queries, keys)])
        functions = Functions(prefill.attend, decode.attend, queries.attend_backward_queries, keys.attend_backward_keys)
        return cls(
            name, functions, Form(*prefill.FORM), prefill.HEAD_WIDTH, prefill.VALUE_WIDTH, prefill.GROUP, prefill.EXPONENT,
            [dtype for dtype in DTYPES if dtype.itemsize in {size for _, size in prefill.BLOCKS}],
        )  # fmt: skip

    def __call__(
        self,
        q: Tensor,
        part: KeyPart,
        rows: Tensor,
        form: Form,
        batch: Batch,
        scale: Tensor,
        cap: float | None = None,
        sink_logit: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """o [T, H, E] in the dtype of q, k and v, and the log-sum-exp [T, H] float32 (softplus.py: sums)."""
        assert form == self.form, "rows are made for the kernel's form"
        q, k, v = cast(q, part.k, part.v)
        self.check(q, k, v, part, rows, scale, sink_logit)
        if at_once(q, k, v):
            q, k, v = dense(q), k.contiguous(), v.contiguous()
            part = part if k is part.k and v is part.v else part.holding(k, v)
            run = self.functions.decode if batch.max_new <= DECODE_TOKENS else self.functions.prefill
            with device_of(q):
                return run(q, part, rows, form, batch, scale, cap, sink_logit)
        places = [batch.offsets, batch.past, part.k_begin, part.v_begin, part.stored, part.base, part.pinned, part.ring]
        sizes = [part.k_stride, part.v_stride, batch.max_new, part.max_stored, part.max_slots]
        o, lse = self.operators.attend(q, k, v, scale, rows, places, sizes, part.rings, part.shared, cap, sink_logit)
        return o, lse

    def check(
        self, q: Tensor, k: Tensor, v: Tensor, part: KeyPart, rows: Tensor, scale: Tensor, sink_logit: Tensor | None
    ) -> None:
        """Raises ValueError unless these are what the kernels are made for."""
        heads = rows.shape[1] * self.group
        shape = q.shape
        if len(shape) != 3 or shape[1] != heads or shape[2] != self.q_width:
            raise ValueError(f"q is [T, {heads}, {self.q_width}], got {list(q.shape)}")
        if (part.k_width, part.v_width) != (self.q_width, self.v_width):
            raise ValueError(f"k and v are {self.q_width} and {self.v_width} wide, got {part.k_width} and {part.v_width}")
        if q.dtype not in self.dtypes:
            *few, last = map(word, self.dtypes)
            raise ValueError(f"q is {', '.join(few)} or {last} in generated kernels, got {word(q.dtype)}; use('torch')")
        for name, x in (("k", k), ("v", v)):
            if x.dtype != q.dtype:
                raise ValueError(f"q, k and v have one dtype: q is {word(q.dtype)}, {name} is {word(x.dtype)}")
        others = (("k", k), ("v", v), ("rows", rows), ("scale", scale), ("sink_logit", sink_logit))
        for name, other in others:
            if other is not None and other.device != q.device:
                raise ValueError(f"all tensors are on one device: q is on {q.device}, {name} on {other.device}")
        wanted = [heads] if self.exponent is None else [len(q), heads, 3]
        if list(scale.shape) != wanted or scale.dtype != torch.float32:
            raise ValueError(f"scale is {wanted} float32, got {list(scale.shape)} {word(scale.dtype)}")
        if sink_logit is not None and sink_logit.shape != (heads,):
            raise ValueError(f"sink_logit is [{heads}], got {list(sink_logit.shape)}")
