"""Focal Transformer, versions 1 and 2 (Yang et al. 2021): stages, blocks, head.

Shape legend: B batch; H, W a stage's map in tokens; N its tokens in stage order, padding included; T = N plus pooled
tokens; C channels (see focal_geometry.py for the order of tokens).
"""

from __future__ import annotations

from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal.config.schema import ModelConfig
from focal.models.attention_builder import AttentionBuilder, attention_builder
from focal.models.focal_keys import StageMap
from focal.models.gather import GatherRows
from focal.models.layers import CounterUniform, Dropout, DropPath, LayerNorm, Mlp, PatchEmbed, dense
from focal.models.requirements import check_network, pool_method, pooled_levels
from focal.models.window_pooling import WindowPooling


class RandomSource:
    """Makes the network's dropout Cells, each with a key of its own, all driven by one counter."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.counter = Parameter(Tensor(0, ms.int32), name="random_counter", requires_grad=False)

    def uniform(self, name: str) -> CounterUniform:
        return CounterUniform(name, self.seed, self.counter)

    def dropout(self, name: str, rate: float) -> Dropout:
        return Dropout(rate, self.uniform(name))

    def drop_path(self, name: str, rate: float) -> DropPath:
        return DropPath(rate, self.uniform(name))


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
        random: RandomSource,
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
            random.dropout(f"{name}.{kind}", rate)
            for kind, rate in (("attn", model.attn_drop_rate), ("proj", model.drop_rate))
        ]
        self.attn = builder.build(index, *attention_drops)
        self.norm2 = LayerNorm(channels)
        dropouts = tuple(random.dropout(f"{name}.mlp.{layer}", model.drop_rate) for layer in (1, 2))
        self.mlp = Mlp(channels, int(channels * model.mlp_ratio), dropouts)
        self.drop_path1 = random.drop_path(f"{name}.1", drop_path_rate)
        self.drop_path2 = random.drop_path(f"{name}.2", drop_path_rate)
        if model.recompute:
            # Not the whole block: MindSpore 2.8 builds a cyclic graph when it recomputes the masks of drop path.
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

    def construct(self, x: Tensor) -> Tensor:
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
        x = x + self.drop_path1(branch)
        branch = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            branch = self.gamma_2.astype(branch.dtype) * branch
        return x + self.drop_path2(branch)  # (B, N, C)


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

    def run_blocks(self, x: Tensor) -> Tensor:
        """(B, H * W, C) -> (B, H * W, C), raster order."""
        x = self.to_stage_order(x)  # (B, N, C)
        for block in self.blocks:
            x = block(x)
        return self.to_raster_order(x)

    def as_map(self, x: Tensor) -> Tensor:
        """(B, H * W, C) -> (B, C, H, W)."""
        batch, _, channels = x.shape
        return x.transpose((0, 2, 1)).reshape((batch, channels, self.height, self.width))

    def construct(self, x: Tensor) -> Tensor:
        x = self.run_blocks(x)
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
        random = RandomSource(seed)
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
        self.pos_drop = random.dropout("pos", model.drop_rate)
        self.layers = nn.CellList(self._build_stages(model, maps, random))
        features = model.embed_dim * 2 ** (len(model.depths) - 1)
        self.norm = LayerNorm(features)
        self.head: Optional[nn.Dense] = dense(features, model.num_classes) if model.num_classes else None
        self.random_counter = random.counter
        # A Cell that takes this network in renames its parameters; these names stay.
        self.official_parameters = {_official_name(path): parameter for path, parameter in self.parameters_and_names()}
        for name, parameter in self.official_parameters.items():
            parameter.name = name

    @staticmethod
    def _build_stages(model: ModelConfig, maps: list[StageMap], random: RandomSource) -> list[FocalStage]:
        drop_path = np.linspace(0, model.drop_path_rate, sum(model.depths)).tolist()  # linear over depth
        stages = []
        for stage, (depth, stage_map) in enumerate(zip(model.depths, maps)):
            builder = attention_builder(model, stage, stage_map)
            blocks = []
            for index in range(depth):
                block = FocalBlock(model, stage, index, builder, drop_path.pop(0), random)
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

    def forward_stages(self, images: Tensor) -> tuple[Tensor, ...]:
        """Output of each stage after its downsampling, (B, tokens, channels), raster order; the last has none."""
        x = self.embed(images)
        outputs = ()
        for stage in self.layers:
            x = stage(x)
            outputs += (x,)
        return outputs

    def construct(self, images: Tensor) -> Tensor:
        x = self.embed(images)
        for stage in self.layers:
            x = stage(x)
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
