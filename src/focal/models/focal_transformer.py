"""Focal Transformer, versions 1 and 2 (Yang et al. 2021): blocks, stages, head.

Shape legend: B batch; H, W a stage's map in tokens; N its tokens in stage order, padding included; T = N plus pooled
tokens; P tokens of one pooled level; C channels (see focal_keys.py for the order of tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Optional

import mindspore as ms
import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from focal.config.schema import Config, ConfigError, ModelConfig
from focal.models.ascend_forms import Dense, LayerNorm, TokenMean
from focal.models.focal_attention import AttentionBuilder
from focal.models.gathers import GatherRows
from focal.models.initialization import initialize
from focal.models.layers import RANDOM_COUNTER, DropoutSource, DropPath, DropPathFactors, Mlp, PatchEmbed
from focal.models.shared_graphs import SharesGraph
from focal.models.stages import StageSettings, check_network
from focal.models.window_pooling import WindowPooling

BlockFactors = tuple[Optional[Tensor], Optional[Tensor]]  # of drop path, for both branches: (B, 1) each, or None
StageFactors = tuple[BlockFactors, ...]  # for each block of a stage; empty if nothing is dropped


def create_model(config: Config) -> FocalTransformer:
    """The network of `config.model`, in float32, with weights drawn from `config.run.seed`.

    Returns:
        A Cell: images (B, in_channels, H, W) -> logits (B, num_classes).

    Raises:
        ConfigError: settings that do not describe a network.
    """
    if config.model.num_classes == -1:
        raise ConfigError(
            "num_classes: -1 needs the data; give --num_classes N, or the config.yaml that the training wrote"
        )
    network = FocalTransformer(config.model, config.run.seed)
    initialize(network, config.run.seed)
    return network


class FocalBlock(SharesGraph):
    """Attention and MLP, each with LayerNorm before it and a residual connection around it.

    Padding tokens are zeros after the norm, as upstream; they are removed at the end of the stage. A
    shifted block sees the map rolled by half a window.

    Args:
        stage: settings of the stage.
        index: number of the block in it.
        attention: builds the attention of the stage's blocks.
        drop_path_rate: probability that a sample skips a branch.
        dropouts: makes the dropout Cells.
    """

    def __init__(
        self,
        stage: StageSettings,
        index: int,
        attention: AttentionBuilder,
        drop_path_rate: float,
        dropouts: DropoutSource,
    ) -> None:
        super().__init__()
        model, channels, name = stage.model, stage.channels, f"layers.{stage.index}.blocks.{index}"
        self.norm1 = LayerNorm(channels)
        pools = [WindowPooling(stage.pool_method, stage.map, level, channels) for level in range(1, stage.levels)]
        self.pool_layers = nn.CellList(pools)
        attn_drop = dropouts.dropout(f"{name}.attn", model.attn_drop_rate)
        self.attn = attention.build(index, attn_drop, dropouts.dropout(f"{name}.proj", model.drop_rate))
        self.norm2 = LayerNorm(channels)
        drop1, drop2 = (dropouts.dropout(f"{name}.mlp.{layer}", model.drop_rate) for layer in (1, 2))
        self.mlp = Mlp(channels, int(channels * model.mlp_ratio), drop1, drop2)
        self.drop_path1, self.drop_path2 = DropPath(drop_path_rate), DropPath(drop_path_rate)
        if model.recompute:
            self.attn.recompute()
            self.mlp.recompute()
        self.gamma_1: Optional[Parameter] = None
        self.gamma_2: Optional[Parameter] = None
        if model.use_layerscale:
            scale = np.full(channels, model.layerscale_value, np.float32)
            self.gamma_1, self.gamma_2 = (Parameter(Tensor(scale), name=f"gamma_{number}") for number in (1, 2))
        self.is_token: Optional[Tensor] = None
        if stage.map.is_padded:
            self.is_token = Tensor((stage.map.raster_to_stage() >= 0).astype(np.float32).reshape(1, -1, 1))
        self.roll, self.unroll = nn.Identity(), nn.Identity()
        if stage.shift(index):
            table = stage.map.shift_table(stage.shift(index))
            self.roll, self.unroll = GatherRows(table, len(table)), GatherRows(np.argsort(table), len(table))

    def construct(self, x: Tensor, factors: BlockFactors = (None, None)) -> Tensor:
        """x (B, N, C), and for each branch the factors of drop path (B, 1), None in evaluation -> (B, N, C)."""
        branch = self.norm1(x)
        if self.is_token is not None:
            branch = branch * self.is_token.astype(branch.dtype)
        branch = self.roll(branch)
        tokens: tuple[Tensor, ...] = (branch,)
        for pool in self.pool_layers:
            tokens += (pool(branch),)  # (B, P, C)
        branch = self.attn(ops.concat(tokens, 1) if len(tokens) > 1 else branch)  # (B, T, C) -> (B, N, C)
        branch = self.unroll(branch)
        if self.gamma_1 is not None:
            branch = self.gamma_1.astype(branch.dtype) * branch
        x = x + self.drop_path1(branch, factors[0])
        branch = self.mlp(self.norm2(x))
        if self.gamma_2 is not None:
            branch = self.gamma_2.astype(branch.dtype) * branch
        return x + self.drop_path2(branch, factors[1])  # (B, N, C)


class FocalStage(nn.Cell):
    """Blocks on one map, then the downsampling: (B, H * W, C) -> (B, H' * W', 2 * C), in raster order.

    Args:
        settings: settings of the stage.
        following: those of the next one; None for the last stage, which has no downsampling.
        drop_path_rates: rate of each block.
        dropouts: makes the dropout Cells.
    """

    def __init__(
        self,
        settings: StageSettings,
        following: Optional[StageSettings],
        drop_path_rates: Sequence[float],
        dropouts: DropoutSource,
    ) -> None:
        super().__init__()
        self.settings, self.builder = settings, AttentionBuilder(settings)
        self.height, self.width = settings.map.height, settings.map.width
        self.to_stage_order = GatherRows(settings.map.raster_to_stage(), self.height * self.width)
        self.to_raster_order = GatherRows(settings.map.stage_to_raster(), settings.map.num_tokens)
        self.blocks = nn.CellList(
            [FocalBlock(settings, i, self.builder, rate, dropouts) for i, rate in enumerate(drop_path_rates)]
        )
        self.downsample: Optional[PatchEmbed] = None
        if following is not None:
            pre_norm = settings.model.use_pre_norm
            self.downsample = PatchEmbed(
                settings.channels,
                following.channels,
                *following.convolution,
                (self.height, self.width),
                pre_norm=pre_norm,
            )

    def run_blocks(self, x: Tensor, factors: StageFactors = ()) -> Tensor:
        """(B, H * W, C) -> (B, H * W, C), raster order; `factors`: for each block those of its `construct`."""
        x = self.to_stage_order(x)  # (B, N, C)
        for index, block in enumerate(self.blocks):
            x = block(x, factors[index]) if factors else block(x)
        return self.to_raster_order(x)  # (B, H * W, C)

    def as_map(self, x: Tensor) -> Tensor:
        """(B, H * W, C) -> (B, C, H, W)."""
        batch, _, channels = x.shape
        return x.transpose((0, 2, 1)).reshape((batch, channels, self.height, self.width))

    def construct(self, x: Tensor, factors: StageFactors = ()) -> Tensor:
        x = self.run_blocks(x, factors)
        if self.downsample is not None:
            x = self.downsample(self.as_map(x))  # (B, H' * W', 2 * C)
        return x


class FocalTransformer(nn.Cell):
    """Images (B, in_channels, H, W) float32 -> logits (B, num_classes).

    With num_classes 0 there is no head, and the pooled features are returned. Parameters have the authors' names; so do
    version 2's key indices, which are parameters without gradient.

    Beyond upstream, any height and width whose convolutions leave tokens for each stage are possible. Version 1 pads
    maps to whole windows at the bottom and on the right, as upstream; with `pad_windows`, version 2 and shifted windows
    do as well: padding tokens are zeros after the norm, version 2 never picks one as a key, and pooled windows count
    them as zeros.

    Args:
        model: settings of the network.
        seed: of dropout and of new heads (`create_model` also sets the other weights).

    Raises:
        ConfigError: settings that do not describe a network, see stages.py.
    """

    def __init__(self, model: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        stages, dropouts = check_network(model), DropoutSource(model, seed)
        first, last = stages[0], stages[-1]
        self.patch_embed = PatchEmbed(
            model.in_channels, first.channels, *first.convolution, model.image_hw, norm=model.patch_norm
        )
        self.absolute_pos_embed: Optional[Parameter] = None
        if model.ape:
            zeros = np.zeros((1, first.map.height * first.map.width, first.channels), np.float32)
            self.absolute_pos_embed = Parameter(Tensor(zeros), name="absolute_pos_embed")
        self.pos_drop = dropouts.dropout("pos", model.drop_rate)
        rates, self.layers = iter(model.drop_path_rates), nn.CellList()
        for stage, following in zip(stages, [*stages[1:], None]):
            self.layers.append(FocalStage(stage, following, [next(rates) for _ in range(stage.depth)], dropouts))
        self.norm, self.token_mean = LayerNorm(last.channels), TokenMean()
        self.head: Optional[Dense] = Dense(last.channels, model.num_classes) if model.num_classes else None
        self.depths, self.seed, self.num_features, self.num_classes = (
            model.depths,
            seed,
            last.channels,
            model.num_classes,
        )
        self.has_drop_path = model.drop_path_rate > 0
        self.keep_rates = Tensor(1 - np.repeat(model.drop_path_rates, 2)[:, None], ms.float32)  # (2 * blocks, 1)
        self.drop_path_factors = DropPathFactors(self.keep_rates.shape[0])
        self.random_counter = dropouts.counter
        # A parent Cell prefixes Parameter.name; keep the original names here.
        self.official_parameters = {_official_name(path): parameter for path, parameter in self.parameters_and_names()}
        for name, parameter in self.official_parameters.items():
            parameter.name = name

    def reset_head(self, num_classes: int) -> None:
        """Replace the head by a new one, with the weights that `create_model` gives a head of so many classes.

        Call it before anything holds the parameters or a compiled form of the network: `apply_precision`, an optimizer,
        another Cell.

        Args:
            num_classes: of the new head; 0 removes it, and the network returns the pooled features (B, C).

        Raises:
            ConfigError: `num_classes` is not a whole number of at least 0.
        """
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise ConfigError(
                f"num_classes: {num_classes!r} is not a number of classes; give a whole number, 0 for none"
            )
        self.head, self.num_classes = None, num_classes
        if num_classes:
            self.head = Dense(self.num_features, num_classes)
            initialize(self.head, self.seed)
        self.official_parameters = {_official_name(path): parameter for path, parameter in self.parameters_and_names()}
        self.compile_cache.clear()  # the head is part of the compiled graph

    def embed(self, images: Tensor) -> Tensor:
        """Images -> tokens (B, H * W, C) of stage 0, raster order."""
        x = self.patch_embed(images)
        if self.absolute_pos_embed is not None:
            x = x + self.absolute_pos_embed.astype(x.dtype)
        return self.pos_drop(x)

    def split_drop_path(self, drop_path: Optional[Tensor], batch: int) -> tuple[StageFactors, ...]:
        """For each stage and block the factors (B, 1) of both branches, in the products' format; empty if none drops.

        Args:
            drop_path: (2 * blocks, B) float32, see `construct`. None: drawn here, from MindSpore's random numbers.
            batch: B.
        """
        if not (self.training and self.has_drop_path):
            return ((),) * len(self.depths)
        if drop_path is None:
            numbers = ops.rand(self.keep_rates.shape[0], batch)
            drop_path = (numbers < self.keep_rates).astype(ms.float32) / self.keep_rates
        rows = self.drop_path_factors(drop_path)
        stages: tuple[StageFactors, ...] = ()
        first = 0
        for depth in self.depths:
            blocks: StageFactors = ()
            for index in range(first, first + 2 * depth, 2):
                blocks += ((rows[index].reshape((batch, 1)), rows[index + 1].reshape((batch, 1))),)
            stages, first = stages + (blocks,), first + 2 * depth
        return stages

    def forward_stages(self, images: Tensor, drop_path: Optional[Tensor] = None) -> tuple[Tensor, ...]:
        """Output of each stage after its downsampling, (B, tokens, channels), raster order; the last has none."""
        factors = self.split_drop_path(drop_path, images.shape[0])
        x = self.embed(images)  # (B, H * W, C)
        outputs: tuple[Tensor, ...] = ()
        for index, stage in enumerate(self.layers):
            x = stage(x, factors[index])
            outputs += (x,)
        return outputs

    def forward_features(self, images: Tensor, drop_path: Optional[Tensor] = None) -> Tensor:
        """Images -> what the head takes: the mean over the tokens after the last norm, (B, num_features)."""
        x = self.forward_stages(images, drop_path)[-1]
        return self.token_mean(self.norm(x))  # (B, C)

    def construct(self, images: Tensor, drop_path: Optional[Tensor] = None) -> Tensor:
        """Images (B, in_channels, H, W) -> logits (B, num_classes).

        Args:
            images: normalised pixels.
            drop_path: in training, a factor per branch and sample (2 * blocks, B) float32, as
                focal.data.transforms.drop_path draws them. None: drawn on the device, which no resume can repeat.
        """
        x = self.forward_features(images, drop_path)
        return x if self.head is None else self.head(x)


def _official_name(path: str) -> str:
    """The name in the authors' state dict of the parameter at `path` in our tree of Cells."""
    stem, _, leaf = path.rpartition(".")
    if leaf in (RANDOM_COUNTER, "counter"):  # not upstream
        return RANDOM_COUNTER
    if leaf in ("gamma", "beta"):  # of nn.LayerNorm and nn.GroupNorm
        return f"{stem}.weight" if leaf == "gamma" else f"{stem}.bias"
    return path.replace(".position_bias.", ".").replace(".to_windows.", ".relative_position_bias_table_to_windows.")
