"""Names of a layer's parts in checkpoints and generated classes: the spec's own words, where Python leaves them free."""

from __future__ import annotations

import keyword
from collections.abc import Sequence

OF_MODULES = """
add_module apply bfloat16 buffers call_super_init children compile cpu cuda double dump_patches eval extra_repr float forward
get_buffer get_extra_state get_parameter get_submodule half ipu load_state_dict modules mtia named_buffers named_children
named_modules named_parameters parameters register_backward_hook register_buffer register_forward_hook
register_forward_pre_hook register_full_backward_hook register_full_backward_pre_hook register_load_state_dict_post_hook
register_load_state_dict_pre_hook register_module register_parameter register_state_dict_post_hook
register_state_dict_pre_hook requires_grad_ set_extra_state set_submodule share_memory smart_apply state_dict to to_empty train
training type xpu zero_grad
"""
"""What PyTorch's modules call their own, as far as a word of the language can be spelt so; transformers adds `smart_apply`."""

OF_CLASSES = "gate mixes plans slot source start starts"
"""What the classes of a built model call their own."""

RESERVED = frozenset([*keyword.kwlist, *OF_MODULES.split(), *OF_CLASSES.split()])


def part_names(words: Sequence[str]) -> tuple[str, ...]:
    """The words in order, each once: a taken one gets an underscore, a second `full` is `full_2`."""
    free = [f"{word}_" if word in RESERVED else word for word in words]
    found: list[str] = []
    for place, word in enumerate(free):
        count = 1 + free[:place].count(word)
        name = word if count == 1 else f"{word}_{count}"
        while name in found or (count > 1 and name in free):
            name += "_"
        found.append(name)
    return tuple(found)
