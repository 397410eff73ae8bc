"""Reference masks against pictures drawn by hand, and the other reference of the kinds: the gated convolution."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_intervals import reference

from attnc.compiler.mixers import MIXERS
from attnc.compiler.mixers.block_local import BlockLocal
from attnc.compiler.mixers.conv import gated_convolution
from attnc.compiler.mixers.full import Full
from attnc.compiler.mixers.persistent import Persistent
from attnc.compiler.mixers.power_of_two import PowerOfTwo
from attnc.compiler.mixers.sink import Sink
from attnc.compiler.mixers.stride import Stride
from attnc.compiler.mixers.window import Window
from attnc.compiler.value import Share

# One row a query, one sign a key: `#` is seen. Both directions where the name says so.
PICTURES = {
    "full": (Full(), "#....... ##...... ###..... ####.... #####... ######.. #######. ########"),
    "full both": (Full(), "####### ####### ####### ####### ####### ####### #######"),
    "window": (Window(n=3), "#....... ##...... ###..... .###.... ..###... ...###.. ....###. .....###"),
    "window both": (Window(n=3), "###..... ####.... #####... .#####.. ..#####. ...##### ....#### .....###"),
    "window aligned": (
        Window(n=6, aligned=3),
        "#........ ##....... ###...... ####..... #####.... ######... ...####.. ...#####. ...######",
    ),
    "window aligned both": (
        Window(n=4, aligned=2),
        "####.... ####.... ######.. ######.. ..###### ..###### ....#### ....####",
    ),
    "window share": (Window(n=Share(percent=50)), "#..... ##.... ###... .###.. ..###. ...###"),
    "sink": (Sink(n=2), "#..... ##.... ##.... ##.... ##.... ##...."),
    "sink both": (Sink(n=2), "##.. ##.. ##.. ##.."),
    "block": (BlockLocal(n=3), "#....... ##...... ###..... ...#.... ...##... ...###.. ......#. ......##"),
    "block both": (BlockLocal(n=3), "###.... ###.... ###.... ...###. ...###. ...###. ......#"),
    "block shifted": (
        BlockLocal(n=4, shift=Share(percent=50)),
        "#........ ##....... ..#...... ..##..... ..###.... ..####... ......#.. ......##. ......###",
    ),
    "block share": (BlockLocal(n=Share(percent=50)), "#..... ##.... ###... ...#.. ...##. ...###"),
    "stride": (Stride(n=3), "#....... .#...... ..#..... #..#.... .#..#... ..#..#.. #..#..#. .#..#..#"),
    "stride both": (Stride(n=3), "#..#..# .#..#.. ..#..#. #..#..# .#..#.. ..#..#. #..#..#"),
    "power of two": (
        PowerOfTwo(n=2),
        "#............. ##............ ###........... ####.......... #####......... ######........ ..#####....... "
        "..######...... ##..#####..... ##..######.... ..##..#####... ..##..######.. ....##..#####. ....##..######",
    ),
    "power of two both": (
        PowerOfTwo(n=1),
        "###.#...# ####.#... #####.#.. .#####.#. #.#####.# .#.#####. ..#.##### ...#.#### #...#.###",
    ),
    "persistent": (Persistent(n=4), "#### #### #### ####"),
}


@pytest.mark.parametrize("name", PICTURES)
def test_a_mask_is_the_picture(name):
    kind, rows = PICTURES[name]
    rows = rows.split()
    assert all(len(row) == len(rows) for row in rows), "a picture is square"
    mask = reference([kind], causal="both" not in name, length=len(rows))
    assert ["".join("#" if seen else "." for seen in row) for row in mask.tolist()] == rows


def test_every_key_set_has_a_picture():
    drawn = {kind.kind for kind, _ in PICTURES.values()}
    assert drawn == {name for name, mixer in MIXERS.items() if mixer.mask is not None}


def test_every_kind_has_examples_of_its_own():
    assert all(isinstance(example, mixer.parameters) for mixer in MIXERS.values() for example in mixer.examples)
    assert all(mixer.examples for mixer in MIXERS.values())


def drawn(n: int, inner: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """B, C and u of nine tokens, and taps."""
    torch.manual_seed(seed)
    return torch.randn(9, 3 * inner, dtype=torch.float64), torch.randn(inner, n, dtype=torch.float64)


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 9))
def test_a_convolution_is_the_sum_over_its_taps(n, inner, seed):
    x, conv = drawn(n, inner, seed)
    y, state = gated_convolution(x, conv)
    before, after, u = x.chunk(3, dim=-1)
    gated = before * u
    for t in range(9):
        mixed = sum(conv[:, n - 1 - back] * gated[t - back] for back in range(n) if back <= t)
        torch.testing.assert_close(y[t], after[t] * mixed)
    assert state.shape == (n - 1, inner)


@given(st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_a_convolution_in_two_calls_is_the_convolution_in_one(n, cut, seed):
    x, conv = drawn(n, 4, seed)
    whole, end = gated_convolution(x, conv)
    first, state = gated_convolution(x[:cut], conv)
    second, last = gated_convolution(x[cut:], conv, state)
    torch.testing.assert_close(torch.cat((first, second)), whole)
    torch.testing.assert_close(last, end)
