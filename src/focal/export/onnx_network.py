"""A Focal Transformer as an ONNX graph, with the network's own tables and order of tokens (focal_keys.py).

MindSpore's own ONNX export refuses Erf, so the graph is written here, node by node. The position bias and the scale of
the queries are folded into constants, the batch size is dynamic, and GELU is exact (the operator Erf).

Shape legend: B batch; N tokens of a stage, T with pooled tokens; C channels; h heads, d = C / h; G groups of Q queries
and K keys; P pooled tokens of s * s tokens each.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

import numpy as np
from mindspore import nn

from focal.export.onnx_graph import OnnxGraph, import_optional
from focal.models.focal_attention import FocalAttention
from focal.models.focal_transformer import FocalBlock, FocalStage, FocalTransformer
from focal.models.gathers import GatherRows
from focal.models.layers import PatchEmbed
from focal.models.window_pooling import WindowPooling


def write_onnx(
    network: FocalTransformer, image_shape: tuple[int, ...], path: Path, metadata: Optional[Mapping[str, str]] = None
) -> None:
    """Write `network` (weights loaded, float32) for images (B, *image_shape) to `path`.

    Inputs and outputs of the file: `images` (batch, channels, height, width), `logits` (batch, num_classes).

    Args:
        metadata: texts for the file's metadata_props, see description.py.

    Raises:
        UserError: the onnx package is missing.
    """
    graph = OnnxGraph()
    x = _patch_embed(graph, "images", network.patch_embed)
    if network.absolute_pos_embed is not None:
        x = graph.node("Add", x, graph.constant(_array(network.absolute_pos_embed)))
    for stage in network.layers:
        x = _stage(graph, x, stage)
    x = graph.node("ReduceMean", _norm(graph, x, network.norm), axes=[1], keepdims=0)  # (B, C)
    if network.head is not None:
        x = _dense(graph, x, network.head)
    graph.node("Identity", x, outputs=["logits"])
    classes = network.head.out_channels if network.head is not None else network.norm.gamma.size
    model = graph.model({"images": ("batch", *image_shape)}, {"logits": ("batch", classes)}, metadata or {})
    import_optional("onnx").save(model, str(path))


def _array(parameter: Any) -> np.ndarray:
    return parameter.asnumpy().astype(np.float32)


def _dense(graph: OnnxGraph, x: str, cell: nn.Dense, scale_queries: float = 1.0) -> str:
    """A dense layer; the first third of its outputs, the queries, is scaled by `scale_queries`."""
    weight, bias = _array(cell.weight), _array(cell.bias) if cell.has_bias else None
    if scale_queries != 1.0:
        factor = np.ones(len(weight), np.float32)
        factor[: len(weight) // 3] = scale_queries
        weight, bias = weight * factor[:, None], None if bias is None else bias * factor
    return graph.dense(x, weight, bias)


def _norm(graph: OnnxGraph, x: str, cell: nn.LayerNorm) -> str:
    return graph.layer_norm(x, _array(cell.gamma), _array(cell.beta), cell.epsilon)


def _patch_embed(graph: OnnxGraph, x: str, cell: PatchEmbed) -> str:
    """Map (B, C_in, H, W) -> tokens (B, H' * W', C)."""
    if cell.pre_norm is not None:  # one group: mean and standard deviation over channels and places together
        flat = graph.node(
            "InstanceNormalization", graph.reshape(x, 0, 1, -1), graph.constant(np.ones(1, np.float32)),
            graph.constant(np.zeros(1, np.float32)), epsilon=float(cell.pre_norm.eps),
        )  # fmt: skip
        flat = graph.node("Reshape", flat, graph.node("Shape", x))
        scale, shift = (
            graph.constant(_array(p).reshape(1, -1, 1, 1)) for p in (cell.pre_norm.gamma, cell.pre_norm.beta)
        )
        x = graph.node("Add", graph.node("Mul", flat, scale), shift)
    weight, bias = graph.constant(_array(cell.proj.weight)), graph.constant(_array(cell.proj.bias))
    x = graph.node("Conv", x, weight, bias, strides=cell.proj.stride, pads=[cell.proj.padding] * 4)
    x = graph.transpose(graph.reshape(x, 0, cell.proj.out_channels, -1), 0, 2, 1)  # (B, H' * W', C)
    return x if cell.norm is None else _norm(graph, x, cell.norm)


def _stage(graph: OnnxGraph, x: str, stage: FocalStage) -> str:
    stage_map = stage.settings.map
    x = graph.gather(x, stage_map.raster_to_stage().clip(0))  # (B, N, C)
    for block in stage.blocks:
        x = _block(graph, x, block)
    x = graph.gather(x, stage_map.stage_to_raster())  # (B, H * W, C)
    if stage.downsample is not None:
        x = graph.reshape(graph.transpose(x, 0, 2, 1), 0, stage.settings.channels, stage.height, stage.width)
        x = _patch_embed(graph, x, stage.downsample)
    return x


def _block(graph: OnnxGraph, x: str, block: FocalBlock) -> str:
    branch = _norm(graph, x, block.norm1)
    if block.is_token is not None:
        branch = graph.node("Mul", branch, graph.constant(_array(block.is_token)))
    if isinstance(block.roll, GatherRows):
        branch = graph.gather(branch, block.roll.table.asnumpy())
    tokens = [branch, *(_pool(graph, branch, pool) for pool in block.pool_layers)]
    branch = _attention(graph, graph.node("Concat", *tokens, axis=1) if len(tokens) > 1 else branch, block.attn)
    if isinstance(block.unroll, GatherRows):
        branch = graph.gather(branch, block.unroll.table.asnumpy())
    x = graph.node("Add", x, _scaled(graph, branch, block.gamma_1))
    hidden = graph.gelu(_dense(graph, _norm(graph, x, block.norm2), block.mlp.fc1))
    return graph.node("Add", x, _scaled(graph, _dense(graph, hidden, block.mlp.fc2), block.gamma_2))


def _scaled(graph: OnnxGraph, x: str, gamma: Optional[Any]) -> str:
    return x if gamma is None else graph.node("Mul", x, graph.constant(_array(gamma)))


def _pool(graph: OnnxGraph, x: str, pool: WindowPooling) -> str:
    """(B, N, C) -> (B, P, C)."""
    if pool.pick is not None:
        x = graph.gather(x, pool.pick.table.asnumpy())  # (B, s * s * P, C)
    area, pooled, channels = pool.area, pool.num_pooled, pool.channels
    if pool.method in ("fc", "mean"):
        weight = graph.constant(_array(pool.weight).reshape(1, 1, area))
        x = graph.node("MatMul", weight, graph.reshape(x, 0, area, pooled * channels))
        x = graph.reshape(x, 0, pooled, channels)
        return x if pool.method == "mean" else graph.node("Add", x, graph.constant(_array(pool.bias)))
    x = graph.reshape(x, 0, area, pooled, channels)
    if pool.method == "max":
        return graph.node("ReduceMax", x, axes=[1], keepdims=0)
    weight = graph.constant(_array(pool.weight).reshape(channels, area).T.reshape(1, area, 1, channels))
    x = graph.node("ReduceSum", graph.node("Mul", x, weight), graph.constant(np.array([1])), keepdims=0)
    return graph.node("Add", x, graph.constant(_array(pool.bias)))


def _attention(graph: OnnxGraph, tokens: str, attention: FocalAttention) -> str:
    """(B, T, C) -> (B, N, C)."""
    products, heads = attention.windowed_products, attention.heads
    split = products.split_heads
    depth = attention.proj.in_channels // heads
    qkv = _dense(graph, tokens, attention.qkv, scale_queries=products.scale)  # (B, T, 3 * C)
    rows = graph.reshape(qkv, 0, split.num_tokens * 3 * heads, depth)
    queries, keys, values = (
        graph.reshape(graph.gather(rows, table.asnumpy()), 0, heads * split.groups, -1, depth) for table in split.tables
    )  # (B, h * G, Q or K, d)
    logits = graph.node("MatMul", queries, graph.transpose(keys, 0, 1, 3, 2))  # (B, h * G, Q, K)
    logits = graph.node("Add", logits, graph.constant(_array(attention.gather_bias())))
    attended = graph.node("MatMul", graph.node("Softmax", logits, axis=-1), values)  # (B, h * G, Q, d)
    merge = attention.merge_heads
    rows = graph.gather(graph.reshape(attended, 0, -1, depth), merge.gather_rows.table.asnumpy())  # (B, N * h, d)
    return _dense(graph, graph.reshape(rows, 0, merge.num_tokens, heads * depth), attention.proj)
