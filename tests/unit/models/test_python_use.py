"""Networks built from Python: by name, with weights of a file, with another head, as a backbone of chosen stages."""

import logging
import pickle
import re

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn

import focal
from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.official import official_state_dict
from focal.config import ConfigError, load_config
from focal.errors import UserError
from focal.models import create_backbone, create_model

PER_STAGE = {"focal_levels": [2, 2], "focal_windows": [3, 3], "expand_sizes": [1, 1], "focal_stages": [0, 1]}
TWO_STAGES = {"embed_dim": 16, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4, "image_size": 32, **PER_STAGE}
V1, V2 = "focal_own", "focalv2_own"
IMAGES = np.random.default_rng(0).standard_normal((2, 3, 32, 32)).astype(np.float32)


def network_of(arch=V1, **changes):
    return create_model(load_config({"arch": arch, **TWO_STAGES, **changes})).set_train(False)


def values(network):
    return {parameter.name: parameter.asnumpy() for parameter in network.get_parameters()}


def assert_same_weights(ours, theirs, but=()):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name not in but:
            np.testing.assert_array_equal(value, theirs[name], err_msg=name)


# ---- weights of a file ----


@pytest.mark.parametrize("arch", [V1, V2])
@pytest.mark.parametrize("kind", [".ckpt", ".npz", ".pdparams"])
def test_a_name_with_a_file_gives_its_weights_and_its_number_of_classes(arch, kind, tmp_path, caplog, pynative_mode):
    source = network_of(arch, num_classes=7, seed=5)
    path = tmp_path / f"weights{kind}"
    if kind == ".npz":
        np.savez(path, **official_state_dict(source))
    elif kind == ".pdparams":  # PaddleViT transposes whatever has two axes
        state = {n: v.T if v.ndim == 2 and "topk" not in n else v for n, v in official_state_dict(source).items()}
        path.write_bytes(pickle.dumps(state, protocol=2))
    else:
        write_checkpoint(path, values(source), None)
    network = focal.create_model(arch, pretrained=path, **TWO_STAGES).set_train(False)
    assert_same_weights(values(network), values(source))
    np.testing.assert_array_equal(network(Tensor(IMAGES)).asnumpy(), source(Tensor(IMAGES)).asnumpy())
    lines = [record for record in caplog.records if str(path) in record.getMessage()]
    assert [line.levelno for line in lines] == [logging.INFO] and "not used" not in caplog.text


def test_version_2_takes_over_the_choice_among_equally_close_tokens(tmp_path):
    source = network_of(V2, focal_topK=8)
    state = official_state_dict(source)
    name = "layers.0.blocks.0.attn.topk_cloest_indice_0"
    state[name] = state[name].copy()
    assert state[name][0].tolist() == [9, 10, 11, 17, 18, 19, 25, 26]  # of an 8 x 8 map, around token 18
    state[name][0, 0] = 27  # the opposite corner
    np.savez(tmp_path / "x.npz", **state)
    network = focal.create_model(V2, pretrained=tmp_path / "x.npz", **TWO_STAGES, focal_topK=8)
    np.testing.assert_array_equal(official_state_dict(network)[name], state[name])


def test_a_head_of_another_number_of_classes_is_new_and_one_line_says_so(tmp_path, caplog):
    source = network_of(num_classes=7, seed=5)
    path = str(tmp_path / "weights.ckpt")
    write_checkpoint(tmp_path / "weights.ckpt", values(source), None)
    network = focal.create_model(V1, pretrained=path, num_classes=3, **TWO_STAGES)
    head = {"head.weight", "head.bias"}
    assert_same_weights(values(network), values(source), but=head)
    fresh = values(network_of(num_classes=3))
    assert all((values(network)[name] == fresh[name]).all() for name in head)
    (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert path in line and "the head is new: the file has 7, the network 3 classes" in line
    caplog.clear()
    configured = focal.create_model(load_config({"arch": V1, **TWO_STAGES, "num_classes": 3}), pretrained=path)
    assert_same_weights(values(configured), values(network))
    without = focal.create_model(V1, pretrained=path, num_classes=0, **TWO_STAGES)
    assert without.head is None and "not used: head.weight, head.bias" in caplog.text


@pytest.mark.parametrize("kind", [".ckpt", ".npz"])
def test_weights_of_another_window_size_are_resampled(kind, tmp_path, caplog):
    source, larger = network_of(num_classes=7, seed=5), {**TWO_STAGES, "image_size": 64, "window_size": 8}
    path = tmp_path / f"weights{kind}"
    if kind == ".npz":
        np.savez(path, **official_state_dict(source))
    else:
        write_checkpoint(path, values(source), None)
    network = focal.create_model(V1, pretrained=path, **larger)
    assert "resampled bicubically" in caplog.text
    ours, fresh = values(network), values(create_model(load_config({"arch": V1, **larger, "num_classes": 7})))
    tables = [name for name in ours if "layers.0.blocks.0.attn.relative_position_bias_table_to_" in name]
    assert ours.keys() == fresh.keys() and tables
    assert not any((ours[name] == fresh[name]).all() for name in tables)
    np.testing.assert_array_equal(ours["head.weight"], values(source)["head.weight"])


def test_the_ema_weights_are_loaded_if_asked_for(tmp_path):
    path = tmp_path / "best.ckpt"
    raw, averages = values(network_of(seed=1)), values(network_of(seed=2))
    write_checkpoint(path, {**raw, **{f"ema.{name}": value for name, value in averages.items()}}, {})
    assert_same_weights(values(focal.create_model(V1, pretrained=path, **TWO_STAGES)), raw)
    assert_same_weights(values(focal.create_model(V1, pretrained=path, use_ema=True, **TWO_STAGES)), averages)
    np.savez(tmp_path / "x.npz", **raw)
    with pytest.raises(UserError, match="use_ema: .*x.npz"):
        focal.create_model(V1, pretrained=tmp_path / "x.npz", use_ema=True, **TWO_STAGES)


def test_files_that_do_not_fit_are_refused_by_name(tmp_path):
    path = tmp_path / "weights.ckpt"
    body = {name: value for name, value in values(network_of()).items() if not name.startswith("head.")}
    write_checkpoint(path, body, None)
    with pytest.raises(ConfigError, match=r"num_classes: .*weights.ckpt has no head"):
        focal.create_model(V1, pretrained=path, **TWO_STAGES)
    with pytest.raises(UserError, match=r"weights.ckpt does not fit the network \(missing: .*misshaped: "):
        focal.create_model(V1, pretrained=path, num_classes=3, **{**TWO_STAGES, "embed_dim": 32, "depths": [2, 1]})
    with pytest.raises(UserError, match="nothing.ckpt does not exist"):
        focal.create_model(V1, pretrained=tmp_path / "nothing.ckpt", **TWO_STAGES)
    with pytest.raises(UserError, match="nothing.pth: no such file"):
        focal.create_model(V1, pretrained=str(tmp_path / "nothing.pth"), **TWO_STAGES)
    with pytest.raises(UserError, match="pretrained: True is not the path of a file"):
        focal.create_model(V1, pretrained=True, **TWO_STAGES)
    np.savez(tmp_path / "words.npz", **{"head.bias": np.array(["a", "b"])})
    with pytest.raises(UserError, match="head.bias holds <U1 instead of numbers"):
        focal.create_model(V1, pretrained=tmp_path / "words.npz", **TWO_STAGES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"use_ema": True}, "use_ema: True needs pretrained"),
        ({"out_indices": (0,)}, "out_indices: (0,) needs features_only=True"),
        ({"features_only": True, "num_classes": 5}, "num_classes: 5: with features_only=True there is no head"),
        ({"in_chans": 1}, "unknown key 'in_chans'; did you mean in_channels?"),
        ({"epochs": 50, "num_classes": 3}, "epochs: does not shape the network; give it to load_config, for a"),
        ({"amp_level": "O2"}, "amp_level: does not shape the network"),
        ({"freeze_stages": 1}, "freeze_stages: does not shape the network"),
    ],
)
def test_arguments_without_effect_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        focal.create_model(V1, **TWO_STAGES, **arguments)


def test_pretrained_false_is_none_as_in_timm():
    network = focal.create_model(V1, pretrained=False, **TWO_STAGES, num_classes=3, seed=2)
    assert_same_weights(values(network), values(network_of(num_classes=3, seed=2)))
    with pytest.raises(ConfigError, match="use_ema: True needs pretrained"):
        focal.create_model(V1, pretrained=False, use_ema=True, **TWO_STAGES)


# ---- another head ----


def test_features_are_what_the_head_takes_and_the_number_of_classes_is_an_attribute(pynative_mode):
    network = network_of(num_classes=5)
    features = network.forward_features(Tensor(IMAGES))
    assert features.shape == (2, network.num_features) and network.num_classes == 5
    np.testing.assert_array_equal(network.head(features).asnumpy(), network(Tensor(IMAGES)).asnumpy())
    network.reset_head(0)
    assert network.num_classes == 0
    np.testing.assert_array_equal(network(Tensor(IMAGES)).asnumpy(), features.asnumpy())


@pytest.mark.parametrize("mode", [ms.GRAPH_MODE, ms.PYNATIVE_MODE], ids=["graph", "pynative"])
def test_a_new_head_is_the_one_of_a_network_built_with_so_many_classes(mode, pynative_mode):
    ms.set_context(mode=mode)
    network, answers, heads = network_of(num_classes=5, seed=3), [], []
    assert network(Tensor(IMAGES)).shape == (2, 5)
    for classes in (9, 0):
        network.reset_head(classes)
        twin = network_of(num_classes=classes, seed=3)
        assert [parameter.name for parameter in network.trainable_params()] == [p.name for p in twin.trainable_params()]
        assert list(network.official_parameters) == list(twin.official_parameters)
        assert_same_weights(values(network), values(twin))
        heads.append(official_state_dict(network))
        answers.append(network(Tensor(IMAGES)).asnumpy())  # the graph for the earlier head would give its shape
    logits, features = answers
    assert features.shape == (2, 32)
    expected = features @ heads[0]["head.weight"].T + heads[0]["head.bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-5)


def test_a_new_head_keeps_the_other_weights_and_goes_into_checkpoints(tmp_path):
    network = network_of(num_classes=5, seed=3)
    before = values(network)
    network.reset_head(2)
    assert_same_weights({**values(network), **{n: before[n] for n in ("head.weight", "head.bias")}}, before)
    np.savez(tmp_path / "x.npz", **official_state_dict(network))
    loaded = focal.create_model(V1, pretrained=tmp_path / "x.npz", **TWO_STAGES)
    assert_same_weights(values(loaded), values(network))


@pytest.mark.parametrize("classes", [-1, 2.5, True, "10"])
def test_a_head_of_no_possible_number_of_classes_is_refused_and_the_old_one_stays(classes):
    network = network_of(num_classes=5)
    with pytest.raises(ConfigError, match=f"num_classes: {classes!r} is not a number of classes"):
        network.reset_head(classes)
    assert network.head.out_channels == 5


# ---- chosen stages ----


@pytest.mark.parametrize("out_indices", [(0,), (1,), (-1,), (0, 1), [np.int64(0)]])
def test_a_backbone_gives_the_maps_of_the_chosen_stages(out_indices, pynative_mode):
    whole = create_backbone(load_config({"arch": V1, **TWO_STAGES})).set_train(False)
    backbone = focal.create_model(V1, features_only=True, out_indices=out_indices, **TWO_STAGES).set_train(False)
    chosen = [index % 2 for index in out_indices]
    expected = [whole(Tensor(IMAGES))[index] for index in chosen]
    maps = backbone(Tensor(IMAGES))
    assert len(maps) == len(expected)
    for ours, theirs in zip(maps, expected):
        np.testing.assert_array_equal(ours.asnumpy(), theirs.asnumpy())
    channels, reduction = backbone.feature_info.channels(), backbone.feature_info.reduction()
    assert [m.shape for m in maps] == [(2, c, 32 // r, 32 // r) for c, r in zip(channels, reduction)]
    assert list(backbone.channels) == channels == [(16, 32)[index] for index in chosen]
    assert backbone.out_indices == tuple(chosen)
    norms = {parameter.name for parameter in backbone.norms.get_parameters()}
    assert norms == {f"norm{index}.{leaf}" for index in chosen for leaf in ("weight", "bias")}


@pytest.mark.parametrize(("arch", "keys"), [(V1, {"patch_size": 2}), (V2, {"use_conv_embed": True})])
def test_reductions_follow_the_convolutions(arch, keys):
    info = focal.create_model(arch, features_only=True, **TWO_STAGES, **keys).feature_info
    assert info.reduction() == ([2, 4] if arch == V1 else [4, 8])


def test_what_follows_the_last_chosen_stage_is_neither_run_nor_trained(pynative_mode):
    backbone = focal.create_model(V1, features_only=True, out_indices=(0,), **TWO_STAGES)
    trained = {parameter.name for parameter in backbone.trainable_params()}
    assert {name.rsplit(".", 1)[0] for name in trained if not name.startswith("layers.0.blocks.")} == {
        "patch_embed.proj", "patch_embed.norm", "norm0",
    }  # fmt: skip
    calls = []

    class Recorder(nn.Cell):
        def construct(self, *inputs):
            calls.append(inputs)

    backbone.network.layers[1].run_blocks = backbone.network.layers[0].downsample.construct = Recorder().construct
    assert len(backbone(Tensor(IMAGES))) == 1 and not calls
    gradients = ms.grad(lambda x: backbone(x)[0].mean(), None, backbone.trainable_params())(Tensor(IMAGES))
    assert len(gradients) == len(trained)


def test_a_compiled_backbone_of_chosen_stages_gives_the_same_maps(pynative_mode):
    backbone = focal.create_model(V2, features_only=True, out_indices=(1,), **TWO_STAGES).set_train(False)
    expected = backbone(Tensor(IMAGES))[0].asnumpy()
    ms.set_context(mode=ms.GRAPH_MODE)
    (found,) = backbone(Tensor(IMAGES))
    np.testing.assert_allclose(found.asnumpy(), expected, atol=1e-5)


def test_a_backbone_takes_the_weights_of_a_classifier(tmp_path, caplog):
    source = network_of(num_classes=7, seed=5)
    write_checkpoint(tmp_path / "weights.ckpt", values(source), None)
    backbone = focal.create_model(
        V1, pretrained=tmp_path / "weights.ckpt", features_only=True, out_indices=(0,), **TWO_STAGES
    )
    body = {name: value for name, value in values(source).items() if not name.startswith("head.")}
    assert_same_weights(values(backbone.network), body)
    assert "not used: head.weight, head.bias" in caplog.text


@pytest.mark.parametrize("out_indices", [(), (2,), (-3,), (1, 0), (0, 0), (0, -2), 1, "01", (True,), (0.0,)])
def test_stages_that_do_not_exist_or_are_out_of_order_are_refused(out_indices):
    with pytest.raises(ConfigError, match=r"out_indices: .*; give ascending|out_indices: .*: give ascending"):
        focal.create_model(V1, features_only=True, out_indices=out_indices, **TWO_STAGES)


def test_the_hint_about_stages_fits_a_network_of_one():
    one = {**TWO_STAGES, **{name: value[:1] for name, value in TWO_STAGES.items() if isinstance(value, list)}}
    with pytest.raises(ConfigError, match=r"there is no stage 1; give ascending numbers of stages, here \(0,\)"):
        focal.create_model(V1, features_only=True, out_indices=(1,), **one)


# ---- names ----


def test_list_models_filters_by_patterns():
    every = focal.list_models()
    assert focal.list_models("*") == every and len(every) == 9
    assert focal.list_models("focalv2*") == [name for name in every if name.startswith("focalv2")]
    assert focal.list_models(["*_tiny_*", "*base_useconv*"]) == [
        name for name in every if "tiny" in name or "base_useconv" in name
    ]
    assert focal.list_models("tiny") == []
