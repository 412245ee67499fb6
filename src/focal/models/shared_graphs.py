"""Blocks that are alike become one function of the graph, so that the compiler reads and types it once, not for each.

MindSpore parses every Cell by itself and infers the types of all its operators. Of Cells with the same `cell_init_args`
it parses only one, and passes it the weights of each as arguments. With `no_inline` False it unfolds that function
before it differentiates the graph, so that the graph is the same as without sharing. MindSpore's own decorator,
`lazy_inline(policy="front")`, sets these two attributes from the arguments of `__init__`. Those do not determine a Cell
whose tables, forms and number formats are chosen later; so here they follow from what the Cell holds when it is parsed.

Only networks in training share: for evaluation and export each block has a position bias of its own folded into its
graph, and the weights that are passed to a function would appear in exported files even where nothing uses them.
"""

from __future__ import annotations

import hashlib
from typing import Any

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn
from mindspore.ops import Primitive

LARGE_BYTES = 1 << 16  # larger constants are told apart by identity; the tables of attention are shared between blocks

# Attributes of a Cell that say nothing of its graph: names, counters, what MindSpore keeps between compilations; and
# children and parameters, which are looked at by themselves.
NOT_OF_THE_GRAPH = frozenset((
    "_cell_init_args", "_cells", "_compile_cache", "_compile_phase", "_compiled", "_create_time", "_exist_names",
    "_exist_objs", "_id", "_init_flag", "_is_check_and_refresh", "_jit_graph_name", "_lazy_construct_sig",
    "_param_prefix", "_params", "_phase", "_phase_cache", "_scope", "arguments_key",
))  # fmt: skip


class SharesGraph(nn.Cell):
    """Base of Cells that a network repeats: those that are alike in everything but names and weights share a graph."""

    no_inline = False  # read by MindSpore's parser: unfold the shared function before differentiation

    @property
    def cell_init_args(self) -> str:
        """Read by MindSpore's parser; Cells share if they have this attribute, with the prefix, and it is equal."""
        if not self.training:
            raise AttributeError("cell_init_args")
        try:
            return f"lazy_inline_{graph_digest(self)}"
        except AttributeError as error:  # it would be taken for a Cell that does not share
            raise RuntimeError(f"no digest of {type(self).__name__}") from error


def graph_digest(cell: nn.Cell) -> str:
    """Digest of all that shapes the graph of `cell`: equal for Cells that are alike in all but names and weights.

    What is not known here counts as different unless it is the same object, so that Cells share too seldom at worst.
    """
    return hashlib.sha256(_facts(cell).encode()).hexdigest()[:16]


def _facts(value: Any) -> str:
    if isinstance(value, Parameter):  # before Tensor, which it is as well; its value is no constant of the graph
        return f"parameter {value.dtype} {value.shape} {value.requires_grad}"
    if isinstance(value, (Tensor, np.ndarray)):
        return f"{type(value).__name__} {value.dtype} {value.shape} {_content(value)}"
    if isinstance(value, nn.Cell):
        held = {
            name: entry for name, entry in vars(value).items() if name not in NOT_OF_THE_GRAPH and not _is_unset(entry)
        }
        held["recompute"] = str(value._scope).startswith("recompute_")  # else the scope is the Cell's place and name
        children = _facts({name: cell for name, cell in value._cells.items() if name != "_recompute_cell"})
        parameters = _facts(dict(value._params))
        return f"{type(value)} {_facts(held)} {children} {parameters}"
    if isinstance(value, Primitive):
        return f"{type(value)} {value.name} {_facts(value.attrs)}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name!r}: {_facts(entry)}' for name, entry in value.items())}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(_facts, value))})"
    if value is None or isinstance(value, (bool, int, float, str, ms.Type)):
        return repr(value)
    return f"object {id(value)}"


def _is_unset(entry: Any) -> bool:
    """MindSpore makes empty tables of hooks out of None while it compiles."""
    return entry is None or (isinstance(entry, dict) and not entry)


def _content(array: Any) -> str:
    if array.nbytes > LARGE_BYTES:
        return f"at {id(array)}"
    numbers = array.asnumpy() if isinstance(array, Tensor) else array
    return hashlib.sha256(np.ascontiguousarray(numbers).tobytes()).hexdigest()
