"""Networks that cannot be built are refused with the field and a way out."""

import pytest

from focal.config import ConfigError, load_config
from focal.models import create_model
from tests.numerics.reference_cases import case_config

REFUSED = [
    ("nano_v1", {"focal_windows": [5, 4, 3, 1]}, "focal_windows: 4 of stage 1 is even.*e.g. 5"),
    ("nano_v1", {"focal_levels": [5, 2, 2, 2]}, "focal_levels: stage 0 has 5.*at most 4"),
    ("nano_v1", {"expand_sizes": [5, 2, 2, 2]}, "expand_sizes: 5 of stage 0 exceeds its window_size of 4"),
    (
        "nano_v1",
        {"use_shift": True, "image_size": 72, "depths": [2, 1, 2, 1]},
        "image_size: 72 gives stage 0.*18 x 18.*pad_windows",
    ),
    ("nano_v2", {"focal_pool": "none"}, "focal_pool: none for stage 0.*focal_levels to 1"),
    ("nano_v2", {"focal_stages": [0, 1]}, "focal_pool: none for stage 2"),
    ("nano_v2", {"focal_levels": [2, 0, 2, 2]}, "focal_levels: stage 1 has 0"),
    ("nano_v2", {"image_size": 96}, "image_size: 96 gives stage 2.*6 x 6.*pad_windows: True"),
    ("nano_v2", {"image_size": 16}, "image_size: 16 leaves no tokens for stage 3"),
    ("nano_v2", {"mlp_ratio": 1e-3}, "mlp_ratio: 0.001 leaves no hidden channels of 32"),
]


@pytest.mark.parametrize(("case", "change", "message"), REFUSED)
def test_impossible_settings_are_refused_with_the_key_and_a_way_out(case, change, message):
    with pytest.raises(ConfigError, match=message):
        create_model(case_config(case, **change))


def test_the_number_of_levels_that_the_error_suggests_works():
    """The error of too many focal levels names the most that work."""
    create_model(case_config("nano_v1", focal_levels=[4, 2, 2, 2]))


@pytest.mark.parametrize(
    "change", [{"image_size": 96, "pad_windows": True}, {"focal_pool": "none", "focal_levels": [1] * 4}]
)
def test_the_other_ways_out_work(change):
    create_model(case_config("nano_v2", **change))


def test_even_focal_windows_matter_only_where_pooled():
    create_model(case_config("nano_v1", focal_windows=[4, 4, 4, 2], focal_pool="none"))


def test_shift_needs_tiling_only_where_a_block_is_shifted():
    """Of the first stage's one block none is; the authors' code runs this as well."""
    network = create_model(case_config("nano_v1", use_shift=True, image_size=72, depths=[1, 1, 2, 1]))
    assert network.layers[0].settings.map.is_padded


def test_expand_sizes_matter_only_where_a_block_sees_surroundings():
    """`even` makes block 0, the first stage's only one, blind."""
    create_model(case_config("nano_v1", expand_sizes=[5, 2, 2, 2], expand_layer="even", depths=[1, 1, 2, 1]))


def test_published_name_brings_its_settings():
    model = load_config({"arch": "focal_base_useconv_patch4_window7_224"}).model
    assert (model.focal_version, model.use_conv_embed, model.embed_dim) == (1, True, 128)
    assert (model.depths, model.focal_levels, model.drop_path_rate) == ((2, 2, 18, 2), (2, 2, 2, 2), 0.5)
