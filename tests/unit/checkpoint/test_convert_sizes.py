"""Conversion to another number of classes, image size or window size, through scripts/convert_weights.py."""

import mindspore as ms
import numpy as np
import pytest

from focal.checkpoint.official import is_buffer, official_state_dict
from focal.checkpoint.weights import assign_weights, load_weights, read_weights
from focal.config import load_config
from focal.models import create_model
from tests.numerics.reference_cases import case_config
from tests.unit.checkpoint.conversion import full_state, settings_file


def small(version, **changes):
    """A published name, so that its image size is known, with few channels and blocks."""
    arch = f"focal{'v2' if version == 2 else ''}_tiny{'_useconv' if version == 2 else ''}_patch4_window7_224"
    return load_config(
        {"arch": arch, "embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2], "num_classes": 10, **changes}
    )


def test_another_number_of_classes_re_initialises_the_head(tmp_path, script):
    state = full_state("nano_v2")
    np.savez(tmp_path / "x.npz", **state)
    settings = settings_file(tmp_path, case_config("nano_v2"))
    code, out, errors = script(
        "--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings, "--num_classes=7"
    )
    assert (code, errors) == (0, [])
    assert "note: head.weight is re-initialised: the file has (10, 256)\n" in out
    assert "note: head.bias is re-initialised: the file has (10,)\n" in out and out.count("note") == 2
    weights = read_weights(str(tmp_path / "x.ckpt"))
    fresh = create_model(case_config("nano_v2", num_classes=7))
    for name in ("head.weight", "head.bias"):
        np.testing.assert_array_equal(weights.pop(name), fresh.official_parameters[name].asnumpy())
    for name, value in weights.items():  # version 2's key indices among them
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def test_a_network_without_head_leaves_the_files_head_out(tmp_path, script):
    np.savez(tmp_path / "x.npz", **full_state("nano_v1"))
    settings = settings_file(tmp_path, case_config("nano_v1"))
    code, out, _ = script(
        "--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings, "--num_classes=0"
    )
    assert code == 0 and "note: head.weight and head.bias left out: this network has no head" in out
    assert not any(name.startswith("head") for name in read_weights(str(tmp_path / "x.ckpt")))


@pytest.mark.parametrize("version", [1, 2])
def test_another_image_size_rebuilds_the_buffers(version, tmp_path, script):
    """Version 1 gets surroundings in the last stage, whose map was one window before; version 2 other key indices, and
    in its last stage a smaller window to pool."""
    state = official_state_dict(create_model(small(version, seed=3)))
    np.savez(tmp_path / "x.npz", **state)
    side = 256 if version == 1 else 112
    config = small(version, image_size=side, seed=4)
    settings = settings_file(tmp_path, config)
    code, out, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert (code, errors) == (0, [])
    weights, fresh = read_weights(str(tmp_path / "x.ckpt")), create_model(config).official_parameters
    reinitialised = {name for name in weights if name not in state or not np.array_equal(weights[name], state[name])}
    indices = {f"layers.{stage}.blocks.0.attn.topk_cloest_indice_{level}" for stage in range(4) for level in (0, 1)}
    neighbours = "layers.3.blocks.0.attn.relative_position_bias_table_to_neighbors"
    if version == 1:
        assert reinitialised == {neighbours}
        assert f"note: {neighbours} is re-initialised: the file has none" in out
    else:
        pooling = "layers.3.blocks.0.pool_layers.0.weight"
        assert f"note: resampled bicubically for these image and window sizes: {pooling}\n" in out
        reinitialised.remove(pooling)
        assert weights[pooling].shape == (1, 16)
        assert reinitialised <= indices and "layers.0.blocks.0.attn.topk_cloest_indice_0" in reinitialised
        assert "buffers rebuilt for this image size" in out
    for name in reinitialised:
        np.testing.assert_array_equal(weights[name], fresh[name].asnumpy(), err_msg=name)
    network = create_model(config)
    load_weights(network, str(tmp_path / "x.ckpt"))
    network.set_train(False)
    assert np.isfinite(network(ms.Tensor(np.ones((1, 3, side, side), np.float32))).asnumpy()).all()


def test_a_ring_that_the_new_size_does_not_have_is_said_to_be_left_out(tmp_path, script):
    """At 112 pixels the map of the third stage is one window."""
    np.savez(tmp_path / "x.npz", **official_state_dict(create_model(small(1))))
    settings = settings_file(tmp_path, small(1, image_size=112))
    code, out, _ = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    neighbours = "layers.2.blocks.0.attn.relative_position_bias_table_to_neighbors"
    assert code == 0 and f"note: {neighbours} left out: a map of this size has no such table\n" in out


def test_key_indices_of_another_map_are_not_converted(tmp_path, script):
    """Without the other buffers, and with windows pooled to their means, no shape tells 64 pixels from 128."""
    state = official_state_dict(create_model(case_config("nano_v2", image_size=64, window_size=4, focal_pool="mean")))
    state = {name: value for name, value in state.items() if "indice" in name or not is_buffer(name)}
    np.savez(tmp_path / "x.npz", **state)
    config = case_config("nano_v2", image_size=128, window_size=8, focal_pool="mean")
    settings = settings_file(tmp_path, config)
    code, out, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert (code, errors) == (0, []) and "note: layers.0.blocks.0.attn.topk_cloest_indice_0, " in out
    name = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    own = create_model(config).official_parameters[name].asnumpy()
    np.testing.assert_array_equal(read_weights(str(tmp_path / "x.ckpt"))[name], own)


def test_a_conversion_for_384_pixels_gives_what_loading_at_384_pixels_gives(tmp_path, script):
    """Version 1 with windows of 12: every table of the windows of 7 is resampled, none is left as initialised."""
    state = official_state_dict(create_model(small(1, seed=3)))
    np.savez(tmp_path / "x.npz", **state)
    settings = settings_file(tmp_path, small(1))
    for name, flags in (("same", ()), ("larger", ("--image_size", 384, "--window_size", 12))):
        target = tmp_path / f"{name}.ckpt"
        code, out, errors = script("--from", tmp_path / "x.npz", "--to", target, "--config", settings, *flags)
        assert (code, errors) == (0, []) and "re-initialised" not in out
    assert "note: resampled bicubically for these image and window sizes: layers.0.blocks.0." in out
    network = create_model(small(1, image_size=384, window_size=12))
    load_weights(network, str(tmp_path / "same.ckpt"))
    converted = read_weights(str(tmp_path / "larger.ckpt"))
    assert converted.keys() == network.official_parameters.keys() - {"random_counter"}
    for name, value in converted.items():
        np.testing.assert_array_equal(network.official_parameters[name].asnumpy(), value, err_msg=name)


def test_weights_of_an_own_network_are_converted_at_their_size_and_resampled_when_loaded(tmp_path, script):
    """Its name does not tell for which sizes the file was made."""
    state = full_state("nano_v1")
    np.savez(tmp_path / "x.npz", **state)
    target, settings = tmp_path / "x.ckpt", settings_file(tmp_path, case_config("nano_v1"))
    other = {"image_size": 128, "window_size": 8}
    flags = [str(part) for name, value in other.items() for part in (f"--{name}", value)]
    for more in ([], ["--num_classes", "7"]):
        code, _, errors = script("--from", tmp_path / "x.npz", "--to", target, "--config", settings, *flags, *more)
        assert code == 2 and len(errors) == 1 and "misshaped layers.0.blocks.0.attn." in errors[0]
        assert errors[0].endswith("convert it with its own: what loads the checkpoint resamples it")
        assert not target.exists()
    code, _, errors = script("--from", tmp_path / "x.npz", "--to", target, "--config", settings)
    assert (code, errors) == (0, [])
    network = create_model(case_config("nano_v1", **other))
    report = assign_weights(network, read_weights(str(target)), str(target))
    assert "layers.0.blocks.0.attn.relative_position_bias_table" in report.resampled
    assert not report.reinitialised and not report.absent


def test_absolute_positions_are_resampled(tmp_path, script):
    """A linear ramp of positions stays one."""
    source = create_model(small(1, ape=True))
    state = official_state_dict(source)
    ramp = (np.arange(56) + 0.5) / 56
    rows, columns = np.broadcast_to(ramp[:, None], (56, 56)), np.broadcast_to(ramp, (56, 56))
    state["absolute_pos_embed"] = np.stack([rows, columns] * 4, -1).reshape(1, 56 * 56, 8).astype(np.float32)
    np.savez(tmp_path / "x.npz", **state)
    settings = settings_file(tmp_path, small(1, ape=True, image_size=[192, 256]))
    code, out, _ = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert code == 0 and "note: resampled bicubically for these image and window sizes: absolute_pos_embed, " in out
    resampled = read_weights(str(tmp_path / "x.ckpt"))["absolute_pos_embed"].reshape(48, 64, 8)
    inside = (slice(4, -4), slice(4, -4))
    row, column = (np.arange(48) + 0.5) / 48, (np.arange(64) + 0.5) / 64
    np.testing.assert_allclose(resampled[inside][:, :, 0], np.repeat(row[4:-4, None], 56, 1), atol=2e-3)
    np.testing.assert_allclose(resampled[inside][:, :, 1], np.repeat(column[None, 4:-4], 40, 0), atol=2e-3)


def test_a_size_that_windows_do_not_tile_is_refused(tmp_path, script):
    np.savez(tmp_path / "x.npz", **official_state_dict(create_model(small(2))))
    settings = settings_file(tmp_path, small(2, image_size=256))
    code, _, errors = script("--from", tmp_path / "x.npz", "--to", tmp_path / "x.ckpt", "--config", settings)
    assert code == 2 and len(errors) == 1 and "pad_windows: True" in errors[0]
