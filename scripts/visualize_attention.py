"""Draw what a query attends to.

    python scripts/visualize_attention.py IMAGE --pretrained CKPT --stage 1 --block 1 --query 112,112
    python scripts/visualize_attention.py --geometry --arch focal_tiny_patch4_window7_224 --stage 1

The picture shows the query's keys, its attention on each focal level and on all together, and how it is divided over
the levels. --query is a place (y,x) in pixels of the network's input; its window is outlined in yellow. --geometry
draws the keys alone and needs no checkpoint, only --config or --arch.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Optional

import numpy as np
from PIL import Image, ImageDraw, ImageFont

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from focal.checkpoint.paths import check_output_file  # noqa: E402
from focal.config import Config, ConfigError, config_for_model, for_one_process, parse_flags  # noqa: E402
from focal.errors import run_main  # noqa: E402

if TYPE_CHECKING:
    from focal.models.attention_maps import QueryKeys
    from focal.models.stages import StageSettings

SIDE, MARGIN, TITLE = 320, 12, 22  # of a panel, between panels, above a panel, in pixels
LEVEL_COLORS = ((66, 133, 244), (52, 168, 83), (234, 67, 53), (171, 71, 188))
QUERY_COLOR, WINDOW_COLOR = (255, 0, 0), (255, 214, 0)
HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)  # inferno


def main() -> Optional[int]:
    """Read the command line, compute, draw, write."""
    flags, arguments = parse_flags(sys.argv[1:], __doc__, add_arguments)
    check_output_file("output", arguments.output)
    if arguments.geometry:
        config = for_one_process(config_for_model(flags, {}))
        panels = geometry_panels(config, arguments)
    else:
        if arguments.image is None or not flags.get("pretrained"):
            raise ConfigError("image, pretrained: give IMAGE and --pretrained CKPT, or --geometry for the keys alone")
        panels = attention_panels(flags, arguments)
    save(panels, arguments.output)
    print(f"wrote {arguments.output}")
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="image file")
    parser.add_argument("--stage", type=int, default=0, help="index of the stage, from 0 (default: 0)")
    parser.add_argument("--block", type=int, default=0, help="index of the block in its stage, from 0 (default: 0)")
    parser.add_argument("--query", metavar="Y,X", help="place in pixels of the network's input (default: its centre)")
    parser.add_argument(
        "--heads", choices=("mean", "all"), default="mean", help="attention averaged over heads, or a row for each"
    )
    parser.add_argument("--cam", metavar="LABEL", help="add Grad-CAM of this class: its number or name, or top")
    parser.add_argument("--geometry", action="store_true", help="the keys alone, without a checkpoint")
    parser.add_argument("--output", default="attention.png", help="the picture to write (default: attention.png)")


def query_place(config: Config, stage: StageSettings, query: Optional[str]) -> tuple[int, int]:
    """The token of a stage's map at a place in pixels."""
    sides, image = (stage.map.height, stage.map.width), config.model.image_hw
    try:
        pixels = [int(part) for part in query.split(",")] if query else [side // 2 for side in image]
    except ValueError:
        pixels = []
    if len(pixels) != 2 or not all(0 <= pixel < side for pixel, side in zip(pixels, image)):
        raise ConfigError(f"query: {query!r} is not a place Y,X in the input of {image[0]} x {image[1]} pixels")
    row, column = (pixel * side // length for pixel, side, length in zip(pixels, sides, image))
    return row, column


def geometry_panels(config: Config, arguments: argparse.Namespace) -> list[list[tuple[str, Image.Image]]]:
    """The keys of a query, without weights."""
    from focal.models.attention_maps import key_table, query_keys
    from focal.models.stages import check_network

    stages = check_network(config.model)
    if not 0 <= arguments.stage < len(stages) or not 0 <= arguments.block < stages[arguments.stage].depth:
        raise ConfigError(f"stage, block: this network has no block {arguments.block} in stage {arguments.stage}")
    stage = stages[arguments.stage]
    place = query_place(config, stage, arguments.query)
    keys = query_keys(stage, arguments.block, place, key_table(stage, arguments.block))
    picture = Image.new("RGB", config.model.image_hw[::-1], (236, 236, 236))
    if arguments.image is not None:
        picture = input_picture(arguments.image, config)[1]
    return [level_panels(picture, keys, stage)]


def attention_panels(flags: dict[str, str], arguments: argparse.Namespace) -> list[list[tuple[str, Image.Image]]]:
    """Keys and attention of a query, a row of panels for each head or for their mean."""
    import mindspore as ms

    from focal.distributed.device import setup_device
    from focal.models.attention_maps import attention_of_query, grad_cam, spread_on_map
    from focal.models.stages import check_network
    from focal.predict import load_network, names_of_classes, read_model_file

    model_file = read_model_file(flags["pretrained"])
    if model_file.checkpoint is None:
        raise ConfigError(f"pretrained: {model_file.path} is an exported file; attention is drawn from a checkpoint")
    config = for_one_process(config_for_model(flags, model_file.description.settings))
    setup_device(config.run)
    ms.set_context(mode=ms.PYNATIVE_MODE)
    network = load_network(model_file.checkpoint, config)
    pixels, picture = input_picture(arguments.image, config)
    images = ms.Tensor(pixels[None])
    stages = check_network(config.model)
    stage = stages[arguments.stage] if 0 <= arguments.stage < len(stages) else stages[0]  # the next line refuses it
    place = query_place(config, stage, arguments.query)
    keys, weights = attention_of_query(network, images, arguments.stage, arguments.block, place)
    rows = [("mean of heads", weights.mean(0))] if arguments.heads == "mean" else [
        (f"head {head}", of_head) for head, of_head in enumerate(weights)
    ]  # fmt: skip
    size = (stage.map.height, stage.map.width)
    panels = [level_panels(picture, keys, stage)]
    for title, values in rows:
        maps = [(f"{title}, all levels", spread_on_map(keys, values, size))]
        for level in range(stage.levels):
            share = 100 * values[keys.levels == level].sum()
            maps.append((f"level {level}: {share:.1f} %", spread_on_map(keys, values, size, level)))
        panels.append([(name, overlay(picture, heat, keys)) for name, heat in maps])
    panels[0].append(("attention by level, each head", level_bars(keys, weights)))
    if arguments.cam is not None:
        names = names_of_classes(model_file, config, "data_url" in flags)
        label = class_label(arguments.cam, names, network(images).asnumpy()[0])
        panels[0].append((f"Grad-CAM of {names[label][:30]}", overlay(picture, grad_cam(network, images, label), None)))
    return panels


def class_label(wanted: str, names: tuple[str, ...], logits: np.ndarray) -> int:
    """The number of the class that `--cam` names."""
    if wanted == "top":
        return int(logits.argmax())
    if wanted in names:
        return names.index(wanted)
    if wanted.isdigit() and int(wanted) < len(names):
        return int(wanted)
    raise ConfigError(f"cam: {wanted!r} is neither a class of the model nor a number below {len(names)}")


def input_picture(path: str, config: Config) -> tuple[np.ndarray, Image.Image]:
    """An image as the network sees it: normalised (3, H, W), and as a picture."""
    from focal.data import load_eval_image

    pixels = load_eval_image(path, config)
    mean, std = (np.array(values)[:, None, None] for values in (config.data.image_mean, config.data.image_std))
    shown = np.clip(np.rint((pixels * std + mean) * 255), 0, 255).astype(np.uint8)
    return pixels, Image.fromarray(shown.transpose(1, 2, 0))


def level_panels(picture: Image.Image, keys: QueryKeys, stage: StageSettings) -> list[tuple[str, Image.Image]]:
    """For each focal level a panel with its keys outlined on the image."""
    panels = []
    for level in range(stage.levels):
        panel = picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        draw = ImageDraw.Draw(panel, "RGBA")
        cell = (SIDE / stage.map.height, SIDE / stage.map.width)
        chosen = [
            places
            for places, of_level, hidden in zip(keys.places, keys.levels, keys.hidden)
            if of_level == level and not hidden and len(places)
        ]
        color = LEVEL_COLORS[level % len(LEVEL_COLORS)]
        for places in chosen:
            draw.rectangle(_box(places, cell), fill=(*color, 90), outline=(*color, 255))
        _mark_query(draw, keys, cell)
        panels.append((f"keys of level {level}: {len(chosen)}", panel))
    return panels


def _box(places: np.ndarray, cell: tuple[float, float]) -> list[float]:
    (top, left), (bottom, right) = places.min(0), places.max(0) + 1
    return [left * cell[1], top * cell[0], right * cell[1] - 1, bottom * cell[0] - 1]


def _mark_query(draw: ImageDraw.ImageDraw, keys: QueryKeys, cell: tuple[float, float]) -> None:
    for place in keys.window:  # a shifted window may lie in parts at opposite borders
        for (row, column), line in (((-1, 0), (0, 1)), ((1, 0), (2, 3)), ((0, -1), (0, 2)), ((0, 1), (1, 3))):
            if not (keys.window == place + (row, column)).all(1).any():
                left, top, right, bottom = _box(place[None], cell)
                corners = ((left, top), (right, top), (left, bottom), (right, bottom))
                draw.line([corners[line[0]], corners[line[1]]], fill=WINDOW_COLOR, width=3)
    draw.rectangle(_box(np.array([keys.query]), cell), outline=QUERY_COLOR, width=2)


def overlay(picture: Image.Image, heat: np.ndarray, keys: Optional[QueryKeys]) -> Image.Image:
    """A map of weights over the image in grey; the largest weight is brightest."""
    scaled = heat / heat.max() if heat.max() > 0 else heat
    position = scaled * (len(HEAT) - 1)
    lower = np.minimum(position.astype(int), len(HEAT) - 2)
    fraction = (position - lower)[..., None]
    colors = (HEAT[lower] * (1 - fraction) + HEAT[lower + 1] * fraction).astype(np.uint8)
    resample = Image.Resampling.NEAREST if keys is not None else Image.Resampling.BICUBIC
    colored = Image.fromarray(colors).resize((SIDE, SIDE), resample)
    grey = picture.convert("L").convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    panel = Image.blend(grey, colored, 0.65)
    if keys is not None:
        _mark_query(ImageDraw.Draw(panel, "RGBA"), keys, (SIDE / heat.shape[0], SIDE / heat.shape[1]))
    return panel


def level_bars(keys: QueryKeys, weights: np.ndarray) -> Image.Image:
    """For each head a bar divided by focal level."""
    panel = Image.new("RGB", (SIDE, SIDE), "white")
    draw, font = ImageDraw.Draw(panel), ImageFont.load_default()
    height = min(28, (SIDE - 30) // len(weights))
    for head, of_head in enumerate(weights):
        left = 48.0
        draw.text((2, head * height + height / 2 - 6), f"head {head}"[: 3 if height < 10 else None], "black", font)
        for level in range(int(keys.levels.max()) + 1):
            width = float(of_head[keys.levels == level].sum()) * (SIDE - 50)
            box = [left, head * height + 2, left + width, (head + 1) * height - 2]
            draw.rectangle(box, fill=LEVEL_COLORS[level % len(LEVEL_COLORS)])
            left += width
    for level in range(int(keys.levels.max()) + 1):
        share = 100 * weights[:, keys.levels == level].sum(1).mean()
        color = LEVEL_COLORS[level % len(LEVEL_COLORS)]
        draw.text((48 + 90 * level, SIDE - 18), f"level {level}: {share:.1f} %", color, font)
    return panel


def save(panels: list[list[tuple[str, Image.Image]]], output: str) -> None:
    """Write rows of titled panels as one picture."""
    columns = max(map(len, panels))
    width, height = (SIDE + MARGIN) * columns + MARGIN, (SIDE + MARGIN + TITLE) * len(panels) + MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    for row, titled in enumerate(panels):
        for column, (title, panel) in enumerate(titled):
            left, top = MARGIN + column * (SIDE + MARGIN), MARGIN + row * (SIDE + MARGIN + TITLE)
            draw.text((left, top), title, "black", font)
            sheet.paste(panel, (left, top + TITLE))
    try:
        sheet.save(output)
    except (ValueError, OSError) as error:
        raise ConfigError(f"output: {output} cannot be written ({error}); give e.g. attention.png") from None


if __name__ == "__main__":
    run_main(main)
