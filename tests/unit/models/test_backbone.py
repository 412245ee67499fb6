"""Stage maps for detection and segmentation, at sizes that windows do not tile."""

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import load_official_state_dict, official_state_dict
from focal.checkpoint.weights import load_weights
from focal.config import load_config
from focal.models import create_backbone, create_model
from tests.numerics.reference_cases import case_config, case_input, loaded_network


@pytest.mark.parametrize("case", ["nano_v1", "nano_v2_useconv"])
def test_a_size_that_windows_do_not_tile_gives_four_normalised_maps(case, pynative_mode):
    config = case_config(case)
    backbone = create_backbone(config, image_size=(100, 70))
    backbone.set_train(False)
    images = np.random.default_rng(0).standard_normal((2, 3, 100, 70)).astype(np.float32)
    maps = backbone(ms.Tensor(images))
    sizes = [(25, 17), (12, 8), (6, 4), (3, 2)]
    if config.model.use_conv_embed:
        sizes = [(25, 17), (13, 9), (7, 5), (4, 3)]
    assert [output.shape for output in maps] == [(2, c, h, w) for c, (h, w) in zip((32, 64, 128, 256), sizes)]
    for output in maps:  # each map is normalised over its channels
        values = output.asnumpy()
        np.testing.assert_allclose(values.mean(1), 0, atol=1e-4)
        np.testing.assert_allclose(values.std(1), 1, atol=1e-2)


def test_the_last_map_is_the_normalised_output_of_the_last_stage(pynative_mode):
    """At a size the classifier has too, the last map is its last stage, up to the norm."""
    config = case_config("nano_v2")
    backbone, network = create_backbone(config), create_model(config)
    backbone.set_train(False)
    network.set_train(False)
    images = ms.Tensor(np.random.default_rng(1).standard_normal((2, 3, 64, 64)).astype(np.float32))
    last = backbone(images)[-1].asnumpy()
    stage = network.forward_stages(images)[-1].asnumpy()  # (2, 4, 256)
    stage = (stage - stage.mean(-1, keepdims=True)) / np.sqrt(stage.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(last, stage.transpose(0, 2, 1).reshape(2, 256, 2, 2), atol=1e-4)


@pytest.mark.parametrize("version", [1, 2])
def test_padding_changes_nothing_outside_the_image(version, pynative_mode):
    """A padded map's real tokens do not depend on what stands in the padding."""
    keys = {
        "embed_dim": 32,
        "depths": [2],
        "num_heads": [2],
        "focal_levels": [2],
        "focal_windows": [3],
        "expand_sizes": [1],
    }
    config = load_config(
        {"arch": "own", "focal_version": version, "image_size": [24, 40], "window_size": 4, "num_classes": 3,
         "pad_windows": True, "focal_topK": 8, "focal_stages": [0], **keys}
    )  # fmt: skip
    network = create_model(config)
    network.set_train(False)
    images = ms.Tensor(np.random.default_rng(2).standard_normal((1, 3, 24, 40)).astype(np.float32))
    before = network(images).asnumpy()
    stage = network.layers[0]
    table = stage.to_stage_order.table.asnumpy().copy()
    padding = stage.settings.map.raster_to_stage() < 0
    assert padding.sum() == 8 * 12 - 6 * 10
    table[padding] = 17  # fill the padding with another token
    stage.to_stage_order.table = ms.Tensor(table)
    np.testing.assert_allclose(network(images).asnumpy(), before, atol=1e-6)


@pytest.mark.parametrize("case", ["nano_v1_layerscale", "nano_v2"])
def test_a_backbone_loads_the_weights_of_a_classifier(case, tmp_path, pynative_mode):
    """A checkpoint without head loads into `backbone.network`; the official state dict also inside another Cell."""
    classifier = loaded_network(case)
    state = {name: value for name, value in official_state_dict(classifier).items() if not name.startswith("head.")}
    images = ms.Tensor(case_input(case))
    expected = classifier.forward_stages(images)[-1].asnumpy()
    config = case_config(case)
    path = tmp_path / "weights.ckpt"
    weights = {p.name: p.asnumpy() for p in classifier.get_parameters() if not p.name.startswith("head.")}
    write_checkpoint(path, weights, None)
    backbone = create_backbone(config)
    names = [parameter.name for parameter in backbone.get_parameters()]
    assert {"layers.0.blocks.0.norm1.weight", "norm.bias", "norm0.weight", "norm3.bias"} < set(names)
    trainable = {parameter.name for parameter in backbone.trainable_params()}
    assert "norm0.bias" in trainable and "norm.bias" not in trainable  # the classifier's last norm does not run
    load_weights(backbone.network, str(path))
    backbone.set_train(False)
    np.testing.assert_array_equal(backbone.network.forward_stages(images)[-1].asnumpy(), expected)

    detector = nn.SequentialCell(create_backbone(config, image_size=config.model.image_size))
    load_official_state_dict(detector[0].network, state)
    detector.set_train(False)
    np.testing.assert_array_equal(detector[0].network.forward_stages(images)[-1].asnumpy(), expected)
    assert official_state_dict(detector[0].network).keys() == state.keys()
