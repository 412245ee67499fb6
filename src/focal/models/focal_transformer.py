"""Focal Transformer, versions 1 and 2 (Yang et al. 2021): stages, blocks, head.

Shape legend: B batch; H, W a stage's map in tokens; N its tokens in stage order, padding included; T = N plus pooled
tokens; C channels (see focal_geometry.py for the order of tokens).
"""

from __future__ import annotations

import zlib
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal.config.schema import ModelConfig
from focal.models.attention_builder import AttentionBuilder, attention_builder
from focal.models.focal_keys import StageMap
from focal.models.gather import GatherRows
from focal.models.layers import Dropout, DropPath, LayerNorm, Mlp, PatchEmbed, dense
from focal.models.requirements import check_network, pool_method, pooled_levels
from focal.models.window_pooling import WindowPooling


class DropoutSource:
    """Makes the network's dropout Cells, each with a key of its own, all driven by one counter.

    Attributes:
        counter: None where both dropout rates of the network are 0, as in every published recipe.
    """

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.seed = seed
        self.counter: Optional[Parameter] = None
        if model.drop_rate or model.attn_drop_rate:
            self.counter = Parameter(Tensor(0, ms.int32), name="random_counter", requires_grad=False)

    def dropout(self, name: str, rate: float) -> Dropout:
        return Dropout(rate, zlib.crc32(f"{self.seed}/{name}".encode()) & 0x7FFFFFFF, self.counter)


class FocalBlock(nn.Cell):
    """Attention and MLP, each with LayerNorm before and a residual around: (B, N, C) -> (B, N, C).

    Padding tokens take part as zeros after the norm, as upstream pads; what becomes of them afterwards is dropped at
    the end of the stage. A shifted block looks at the map rolled by half a window.
    """

    def __init__(
        self,
        model: ModelConfig,
        stage: int,
        index: int,
        builder: AttentionBuilder,
        drop_path_rate: float,
        source: DropoutSource,
    ) -> None:
        super().__init__()
        name, stage_map, shift = f"layers.{stage}.blocks.{index}", builder.stage_map, builder.shift(index)
        channels = model.embed_dim * 2**stage
        self.norm1 = LayerNorm(channels)
        self.pool_layers = nn.CellList(
            [
                WindowPooling(pool_method(model, stage), stage_map, level, channels)
                for level in range(1, pooled_levels(model, stage) + 1)
            ]
        )
        attention_drops = [
            source.dropout(f"{name}.{kind}", rate)
            for kind, rate in (("attn", model.attn_drop_rate), ("proj", model.drop_rate))
        ]
        self.attn = builder.build(index, *attention_drops)
        self.norm2 = LayerNorm(channels)
        dropouts = tuple(source.dropout(f"{name}.mlp.{layer}", model.drop_rate) for layer in (1, 2))
        self.mlp = Mlp(channels, int(channels * model.mlp_ratio), dropouts)
        self.drop_path1, self.drop_path2 = DropPath(drop_path_rate), DropPath(drop_path_rate)
        if model.recompute:
            self.attn.recompute()
            self.mlp.recompute()
        self.gamma_1: Optional[Parameter] = None
        self.gamma_2: Optional[Parameter] = None
        if model.use_layerscale:
            start = np.full(channels, model.layerscale_value, np.float32)
            self.gamma_1 = Parameter(Tensor(start), name="gamma_1")
            self.gamma_2 = Parameter(Tensor(start), name="gamma_2")
        self.is_token: Optional[Tensor] = None
        if stage_map.is_padded:
            self.is_token = Tensor((stage_map.raster_to_stage() >= 0).astype(np.float32).reshape(1, -1, 1))
        self.roll: Optional[nn.Cell] = None
        self.unroll: Optional[nn.Cell] = None
        if shift:
            table = stage_map.shift_table(shift)
            self.roll = GatherRows(table, len(table))
            self.unroll = GatherRows(np.argsort(table), len(table))

    def construct(self, x: Tensor, kept: tuple = (None, None)) -> Tensor:
        """x (B, N, C), and for each branch the factors of drop path (B, 1), or None in evaluation -> (B, N, C)."""
        branch = self.norm1(x)
        if self.is_token is not None:
            branch = branch * self.is_token.astype(branch.dtype)
        if self.roll is not None:
            branch = self.roll(branch)
        tokens = (branch,)
        for pool in self.pool_layers:
            tokens += (pool(branch),)
        branch = self.attn(ops.concat(tokens, 1) if len(tokens) > 1 else branch)  # (B, T, C) -> (B, N, C)
        if self.unroll is not None:
            branch = self.unroll(branch)
        if self.gamma_1 is not None:
            branch = self.gamma_1.astype(branch.dtype) * branch
        x = x + self.drop_path1(branch, kept[0])
        branch = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            branch = self.gamma_2.astype(branch.dtype) * branch
        return x + self.drop_path2(branch, kept[1])  # (B, N, C)


class FocalStage(nn.Cell):
    """Blocks on one map, then the downsampling: (B, H * W, C) -> (B, H' * W', 2 * C), raster order."""

    def __init__(self, builder: AttentionBuilder, blocks: list[FocalBlock], downsample: Optional[PatchEmbed]) -> None:
        super().__init__()
        self.builder, stage_map = builder, builder.stage_map
        self.height, self.width = stage_map.height, stage_map.width
        self.to_stage_order = GatherRows(stage_map.raster_to_stage(), self.height * self.width)
        self.to_raster_order = GatherRows(stage_map.stage_to_raster(), stage_map.num_tokens)
        self.blocks = nn.CellList(blocks)
        self.downsample = downsample

    def run_blocks(self, x: Tensor, kept: tuple = ()) -> Tensor:
        """(B, H * W, C) -> (B, H * W, C), raster order; `kept`: for each block what its `construct` takes."""
        x = self.to_stage_order(x)  # (B, N, C)
        for index, block in enumerate(self.blocks):
            x = block(x, kept[index]) if kept else block(x)
        return self.to_raster_order(x)

    def as_map(self, x: Tensor) -> Tensor:
        """(B, H * W, C) -> (B, C, H, W)."""
        batch, _, channels = x.shape
        return x.transpose((0, 2, 1)).reshape((batch, channels, self.height, self.width))

    def construct(self, x: Tensor, kept: tuple = ()) -> Tensor:
        x = self.run_blocks(x, kept)
        if self.downsample is not None:
            x = self.downsample(self.as_map(x))  # (B, H' * W', 2 * C)
        return x


class FocalTransformer(nn.Cell):
    """Images (B, in_channels, H, W) float32 -> logits (B, num_classes).

    With num_classes 0 the head is left out and the pooled features come back. Parameters carry the authors' names; so
    do version 2's key indices, which are parameters without gradient.

    Sizes beyond upstream: any height and width whose convolutions leave tokens for each stage. Version 1 pads maps to
    whole windows at the bottom and right, as upstream; with `pad_windows`, so do version 2 and shifted windows: padding
    tokens are zeros after the norm, version 2 never picks one as a key, and pooled windows count them as zeros.

    Args:
        model: settings of the network.
        seed: of drop path and dropout (`initialization.py` sets the weights).

    Raises:
        ConfigError: settings that no network can have, see requirements.py.
    """

    def __init__(self, model: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        maps = check_network(model)
        source = DropoutSource(model, seed)
        self.patch_embed = PatchEmbed(
            model.in_channels,
            model.embed_dim,
            model.patch_size,
            model.use_conv_embed,
            is_stem=True,
            norm=model.patch_norm,
        )
        self.absolute_pos_embed: Optional[Parameter] = None
        if model.ape:
            shape = (1, maps[0].height * maps[0].width, model.embed_dim)
            self.absolute_pos_embed = Parameter(Tensor(np.zeros(shape, np.float32)), name="absolute_pos_embed")
        self.pos_drop = source.dropout("pos", model.drop_rate)
        self.layers = nn.CellList(self._build_stages(model, maps, source))
        self.depths = model.depths
        self.has_drop_path = model.drop_path_rate > 0
        self.keep_rates = Tensor(1 - np.repeat(model.drop_path_rates, 2)[:, None], ms.float32)  # (2 * blocks, 1)
        features = model.embed_dim * 2 ** (len(model.depths) - 1)
        self.norm = LayerNorm(features)
        self.head: Optional[nn.Dense] = dense(features, model.num_classes) if model.num_classes else None
        self.random_counter = source.counter
        # A Cell that takes this network in renames its parameters; these names stay.
        self.official_parameters = {_official_name(path): parameter for path, parameter in self.parameters_and_names()}
        for name, parameter in self.official_parameters.items():
            parameter.name = name

    @staticmethod
    def _build_stages(model: ModelConfig, maps: list[StageMap], source: DropoutSource) -> list[FocalStage]:
        drop_path_rates = iter(model.drop_path_rates)
        stages = []
        for stage, (depth, stage_map) in enumerate(zip(model.depths, maps)):
            builder = attention_builder(model, stage, stage_map)
            blocks = []
            for index in range(depth):
                block = FocalBlock(model, stage, index, builder, next(drop_path_rates), source)
                blocks.append(block)
            downsample = None
            if stage < len(maps) - 1:
                channels = model.embed_dim * 2**stage
                downsample = PatchEmbed(
                    channels, 2 * channels, 2, model.use_conv_embed, False, True, model.use_pre_norm
                )
            stages.append(FocalStage(builder, blocks, downsample))
        return stages

    def embed(self, images: Tensor) -> Tensor:
        """Images -> tokens (B, H * W, C) of stage 0, raster order."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.astype(x.dtype)
        return self.pos_drop(x)

    def split_drop_path(self, drop_path: Optional[Tensor], batch: int) -> tuple:
        """For each stage and block the factors (B, 1) of both branches; empty tuples where nothing is dropped.

        Args:
            drop_path: (2 * blocks, B) float32, see `construct`. None: drawn here, by MindSpore's random numbers.
            batch: B.
        """
        if not (self.training and self.has_drop_path):
            return ((),) * len(self.depths)
        if drop_path is None:
            numbers = ops.rand(self.keep_rates.shape[0], batch)
            drop_path = (numbers < self.keep_rates).astype(ms.float32) / self.keep_rates
        rows = ops.split(drop_path, 1, 0)
        stages, first = (), 0
        for depth in self.depths:
            blocks = ()
            for index in range(first, first + 2 * depth, 2):
                blocks += ((rows[index].reshape((batch, 1)), rows[index + 1].reshape((batch, 1))),)
            stages, first = stages + (blocks,), first + 2 * depth
        return stages

    def forward_stages(self, images: Tensor, drop_path: Optional[Tensor] = None) -> tuple[Tensor, ...]:
        """Output of each stage after its downsampling, (B, tokens, channels), raster order; the last has none."""
        kept = self.split_drop_path(drop_path, images.shape[0])
        x = self.embed(images)
        outputs = ()
        for index, stage in enumerate(self.layers):
            x = stage(x, kept[index])
            outputs += (x,)
        return outputs

    def construct(self, images: Tensor, drop_path: Optional[Tensor] = None) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes).

        Args:
            images: normalised pixels.
            drop_path: in training, a factor per branch and sample (2 * blocks, B) float32, as
                focal.data.transforms.drop_path draws them. None: drawn on the device, which no resume can repeat.
        """
        kept = self.split_drop_path(drop_path, images.shape[0])
        x = self.embed(images)
        for index, stage in enumerate(self.layers):
            x = stage(x, kept[index])
        x = self.norm(x).mean(1)  # (B, C)
        if self.head is not None:
            x = self.head(x)
        return x


def _official_name(path: str) -> str:
    """What the authors' state dict calls the parameter at `path` in our tree of Cells."""
    stem, _, leaf = path.rpartition(".")
    if leaf in ("random_counter", "counter"):  # not upstream
        return "random_counter"
    if leaf in ("gamma", "beta"):  # of nn.LayerNorm and nn.GroupNorm
        return f"{stem}.weight" if leaf == "gamma" else f"{stem}.bias"
    return path.replace(".position_bias.", ".").replace(".to_windows.", ".relative_position_bias_table_to_windows.")
