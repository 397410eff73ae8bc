"""The oracle of `linear`: transition matrices, head by head and token by token, from docs/language.md and the papers named.

Legend: n new tokens; H states; K rows, V columns of each. `call` is the oracle's call (dense.py); all is in its dtype.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

import torch
from formulas import rotated
from space_formulas import vector_states


def linear(call, mixer, at, x):
    """x [n, W] -> [n, W]; the states lie in call.text from call to call."""
    kind, a = mixer.kind, mixer.attributes
    decay = decays(call, kind, a, at, x)  # [n, H, K or 1]
    if kind.state == "vector":
        return vector_states(call, mixer, at, x, decay)
    q = call.heads(at, "q", x, a.qk_heads, a.head_dim, a)
    q = turned(call, q, a) if kind.key == "projected" else q
    q = of_each(features(call, kind, at, "q", q), a.heads)
    if kind.key == "one_minus_decay":
        k = (1 - decay).expand(-1, -1, q.shape[2])
    else:
        heads = min(a.qk_heads, a.kv_heads)
        k = turned(call, call.heads(at, "k", x, heads, a.head_dim, a), a)
        k = of_each(features(call, kind, at, "k", k), a.heads)
    v = of_each(call.heads(at, "v", x, a.kv_heads, a.value_dim, a), a.heads)
    rows, columns = q.shape[2], v.shape[2]
    erase = write = None
    if kind.update == "delta":
        erase = strengths(call, at, "erase", x, a.heads, kind.beta)
        both_scalar = kind.erase == kind.write == "scalar"
        write = erase if both_scalar else strengths(call, at, "write", x, a.heads, kind.beta)
    state = call.text.rows.get(f"{at}.state", x.new_zeros(a.heads, rows, columns))
    total = call.text.rows.get(f"{at}.sum", x.new_zeros(a.heads, rows))
    plain = kind.feature is None or kind.feature in ("elu", "relu", "softmax", "hedgehog")
    scale = 1 / math.sqrt(a.head_dim) if plain else 1.0
    outputs = []
    for t in range(len(x)):
        new_states, o = [], []
        for h in range(a.heads):
            key = k[t, h]
            forget = torch.diag(decay[t, h].expand(rows))
            value = v[t, h]
            if erase is not None:
                forget = (torch.eye(rows, dtype=x.dtype) - torch.outer(key, erase[t, h] * key)) @ forget
                value = write[t, h] * value
            new_states.append(forget @ state[h] + torch.outer(key, value))
            o.append(q[t, h] @ new_states[-1])
        state = torch.stack(new_states)
        total = decay[t].expand(-1, rows) * total + k[t]
        read = torch.stack(o)
        outputs.append(read / (q[t] * total).sum(1, keepdim=True) if kind.normalize else scale * read)
    call.text.rows[f"{at}.state"], call.text.rows[f"{at}.sum"] = state, total
    out = torch.stack(outputs) if a.causal else whole(q, state, total, kind, scale)
    return call.output(at, a, out, x)


def whole(q, state, total, kind, scale):
    """Both directions: every token reads the sum of all."""
    read = torch.einsum("thk,hkv->thv", q, state)
    return read / torch.einsum("thk,hk->th", q, total)[..., None] if kind.normalize else scale * read


def of_each(x, heads):
    """[n, some heads, width] -> [n, heads, width], each repeated for its neighbours."""
    return torch.stack([x[:, h * x.shape[1] // heads] for h in range(heads)], dim=1)


def turned(call, x, a):
    if a.rope is None:
        return x
    places = torch.arange(call.past, call.past + len(x))
    return torch.stack([rotated(x[:, h], places, a) for h in range(x.shape[1])], dim=1)


def features(call, kind, at, letter, x):
    """[n, heads, D] -> [n, heads, F]; of Taylor every product of channels once, those of fewer channels first, times the root
    of how many orders of its factors the polynomial counts."""
    width = x.shape[-1]
    match kind.feature:
        case None:
            return x
        case "elu":
            return torch.where(x > 0, x + 1, torch.exp(x))
        case "relu":
            return x * (x > 0)
        case "softmax":
            return torch.exp(x) / torch.exp(x).sum(-1, keepdim=True)
        case "favor":
            y, w = x / width**0.25, call.weights[f"{at}.favor"]
            return torch.exp(y @ w.T - (y * y).sum(-1, keepdim=True) / 2) / math.sqrt(len(w))
        case "hedgehog":
            w = call.weights[f"{at}.{letter}_feature"]
            y = torch.stack([x[:, h] @ w[h].T for h in range(x.shape[1])], dim=1)
            return torch.softmax(torch.cat((y, -y), dim=-1), dim=-1)
        case taylor:
            y = x / width**0.25
            products = [y[..., :0].prod(-1)]
            for n in range(1, taylor.n + 1):
                for channels in itertools.combinations_with_replacement(range(width), n):
                    orders = math.factorial(n) / math.prod(map(math.factorial, Counter(channels).values()))
                    products.append(y[..., list(channels)].prod(-1) * math.sqrt(orders / math.factorial(n)))
            return torch.stack(products, dim=-1)


def decays(call, kind, a, at, x):
    """What is left of the states, [n, H, K or 1]: fixed numbers of a head, or gates."""
    ones = x.new_ones(len(x), a.heads, 1)
    match kind.decay:
        case None:
            return ones
        case "slopes":
            return ones * torch.exp(-x.new_tensor(alibi(a.heads)))[:, None]
        case "retention":
            return ones * (1 - x.new_tensor([2.0 ** (-5 - h) for h in range(a.heads)]))[:, None]
    z = x @ call.weights[f"{at}.decay_proj.weight"].T
    if kind.key == "one_minus_decay" or kind.lower_bound != 0 or kind.state == "vector":
        low = lower(call, at) if kind.lower_bound == "learned" else kind.lower_bound
        return (low + (1 - low) * torch.sigmoid(z)).reshape(len(x), a.heads, -1)
    rate = torch.exp(call.weights[f"{at}.A_log"])
    z = (z + call.weights[f"{at}.dt_bias"]).reshape(len(x), a.heads, -1)
    return torch.exp(-rate[:, None] * torch.log(1 + torch.exp(z)))


def lower(call, at):
    """HGRN-2: the sum of a softmax over the layers, from the second one to this."""
    name = f"{at}.lower_bound.weight"
    names = [one for one in sorted(call.weights, key=layer_of) if one.endswith("lower_bound.weight")]
    names = [one for one in names if call.weights[one].shape == call.weights[name].shape]
    shares = torch.softmax(torch.stack([call.weights[one] for one in names]), dim=0)
    return shares[1 : names.index(name) + 1].sum(0)


def layer_of(name):
    return int(name.split(".")[2]) if name.startswith("model.layers.") else -1


def strengths(call, at, name, x, heads, beta):
    """[n, H, K, V or 1]."""
    return beta * torch.sigmoid(x @ call.weights[f"{at}.{name}_proj.weight"].T).reshape(len(x), heads, -1)


def alibi(heads):
    """The slopes of arXiv 2108.12409, as its code computes them."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start * start**i for i in range(heads)]
    closest = 2 ** math.floor(math.log2(heads))
    return alibi(closest) + alibi(2 * closest)[0::2][: heads - closest]
