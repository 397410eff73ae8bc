"""The kernels of channel states fit into registers, compiled without a GPU."""

from __future__ import annotations

import pytest

from attnc.codegen.triton import channels
from attnc.codegen.triton.compile import compile_ahead
from attnc.compiler.families import Channels

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_no_kernel_of_sixteen_numbers_a_channel_spills(target):
    found = compile_ahead(channels.emit(Channels(state=16)), target, "bf16")
    assert [one.kernel for one in found] == ["forward_kernel"] * 3 + ["backward_kernel"]
    assert all((one.spills, one.scratch) == (0, 0) for one in found), found
