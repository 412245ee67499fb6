"""Distillation in the step: the teacher is asked, but neither changed, trained nor saved. Costs about 10 s of CPU."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal.checkpoint.files import write_checkpoint
from focal.checkpoint.train_state import collect_tensors
from focal.config import ConfigError, to_flat_dict
from focal.data import blank_batch
from focal.distributed.device import Device
from focal.errors import UserError
from focal.models import create_model
from focal.trainers import teacher as teacher_module
from focal.trainers.losses import create_loss
from focal.trainers.optimizer import create_optimizer
from focal.trainers.setup import build_network, build_train_step
from focal.trainers.teacher import TEACHER, build_teacher
from focal.trainers.train_one_step import TrainOneStep, trained_parameters
from tests.unit.toy_network import ToyNetwork

NAMES = ("ant", "bee", "cat", "dog")
SMALL = {"embed_dim": 16, "depths": [1], "num_heads": [1], "focal_levels": [1], "focal_windows": [1],
         "expand_sizes": [1], "focal_stages": [0], "window_size": 4, "focal_topK": 4, "image_size": 32}  # fmt: skip


class Stop(Exception):
    """What a test looks at has happened."""


def stop():
    raise Stop


@pytest.fixture
def write_teacher(make_config, tmp_path):
    """Writes a teacher's checkpoint, of version 1, as a training keeps it; returns its path."""

    def write(meta=None, best_is_ema=False, name="teacher.ckpt", **settings):
        settings = {**SMALL, "arch": "focal_nano", "seed": 7, "drop_path_rate": 0.3, "drop_rate": 0.2, **settings}
        config = make_config(**settings)
        tensors = {p.name: p.asnumpy() for p in create_model(config).get_parameters() if p.name != "random_counter"}
        averages = {f"ema.{name}": value + 1 for name, value in tensors.items()}
        own = {"config": to_flat_dict(config), "class_names": NAMES, "best_is_ema": best_is_ema}
        write_checkpoint(tmp_path / name, {**tensors, **averages}, own if meta is None else meta or None)
        return str(tmp_path / name)

    return write


@pytest.fixture
def student(make_config):
    def student(teacher, distillation="soft", **settings):
        return make_config(**{**SMALL, "distillation": distillation, "teacher": teacher, **settings})

    return student


def arrays(parameters):
    return {parameter.name: parameter.asnumpy().copy() for parameter in parameters}


def toy_step(make_config, **settings):
    config = make_config(ema_decay=0.9, **settings)
    network, teacher = ToyNetwork(0, True), None
    if config.step.distillation != "none":
        teacher = ToyNetwork(1)
        for parameter in teacher.get_parameters():
            parameter.requires_grad, parameter.name = False, TEACHER + parameter.name
    optimizer = create_optimizer(trained_parameters(network), config.optim, config.model, np.full(20, 0.05))
    return TrainOneStep(network, create_loss(config.step), optimizer, config.step, Device(), None, teacher)


def log_softmax(logits):
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def run(step, batch, steps):
    losses = []
    for number in steps:
        inputs, targets = batch(number)
        losses.append(float(step(Tensor(inputs), Tensor(targets)).asnumpy()[1]))
    return losses


def test_the_steps_loss_is_that_of_numpy_and_a_resumed_training_goes_on_to_the_bit(make_config, batch):
    settings = {"distillation": "soft", "teacher": "t.ckpt", "distillation_alpha": 0.4, "distillation_tau": 2.0}
    step, plain = toy_step(make_config, **settings), toy_step(make_config)
    before = arrays(step.teacher.get_parameters())
    inputs, targets = batch(0)
    logits, asked = (network(Tensor(inputs)).asnumpy().astype(np.float64) for network in (step.network, step.teacher))
    log_q, log_p = log_softmax(logits / 2), log_softmax(asked / 2)
    without = -(targets * log_softmax(logits)).sum(1).mean()
    expected = 0.6 * without + 0.4 * 4 * (np.exp(log_p) * (log_p - log_q)).sum() / logits.size
    losses = run(step, batch, range(6))
    assert losses[0] == pytest.approx(expected, rel=1e-5)
    assert losses[0] != pytest.approx(without, rel=0.01)
    after = arrays(step.teacher.get_parameters())
    assert all((after[name] == value).all() for name, value in before.items())

    first, second = toy_step(make_config, **settings), toy_step(make_config, **settings)
    assert run(first, batch, range(3)) == losses[:3]
    saved = collect_tensors(first.state(), 1)
    assert not any(TEACHER in name for name in saved) and set(saved) == set(plain.state().shapes())
    second.state().set_tensors(saved)
    assert run(second, batch, range(3, 6)) == losses[3:]


def test_a_network_in_float16_learns_from_another_in_graph_mode_and_leaves_it_as_it_was(student, write_teacher):
    """Version 2, with EMA and drop path, from a version 1 whose parameters have the same names."""
    config = student(write_teacher(), "hard", amp_level="O1", drop_path_rate=0.2)
    network = build_network(config)
    step = build_train_step(config, network, 10, Device(), NAMES)
    before = arrays(step.teacher.get_parameters())
    assert before and all(name.startswith(TEACHER) for name in before)
    assert not any(name.startswith(TEACHER) for name in step.state().shapes())
    assert not any(TEACHER in parameter.name for parameter in step.optimizer.parameters_to_train)
    assert not step.teacher.training and step.network.training
    step.set_train(False)
    step.set_train()  # as after an evaluation
    assert not any(cell.training for _, cell in step.teacher.cells_and_names())
    rng = np.random.default_rng(0)
    batch = list(blank_batch(config))
    batch[0] = rng.integers(0, 256, batch[0].shape, dtype=np.uint8)
    batch[1] = np.full_like(batch[1], 0.25)
    weights = arrays(network.trainable_params())
    losses = [float(step(*map(Tensor, batch)).asnumpy()[1]) for _ in range(4)]
    assert np.isfinite(losses).all() and len(set(losses)) == 4
    assert any((weights[name] != value).any() for name, value in arrays(network.trainable_params()).items())
    after = arrays(step.teacher.get_parameters())
    assert all((after[name] == value).all() for name, value in before.items())


@pytest.mark.parametrize("best_is_ema", (False, True))
def test_the_teacher_is_the_network_of_its_checkpoint(student, write_teacher, best_is_ema):
    """Its architecture comes from the file, and its weights are those that the file was kept for."""
    path = write_teacher(best_is_ema=best_is_ema)
    teacher = build_teacher(student(path), NAMES)
    stored = ms.load_checkpoint(path)
    names = [parameter.name[len(TEACHER) :] for parameter in teacher.get_parameters()]
    prefix = "ema." if best_is_ema else ""
    for name, parameter in zip(names, teacher.get_parameters()):
        assert (parameter.asnumpy() == stored[prefix + name].asnumpy()).all() and not parameter.requires_grad
    assert "layers.0.blocks.0.attn.relative_position_bias_table" in names  # which version 2 has not
    assert "random_counter" not in names  # nothing is dropped


@pytest.mark.parametrize("arch", ("focal_nano", "focalv2_nano"))
def test_a_teacher_of_another_image_size_pads_its_maps(student, write_teacher, arch):
    """At 28 pixels a map of 7 x 7 tokens is no whole number of windows of 4, but has as many as at 32 pixels."""
    teacher = build_teacher(student(write_teacher(arch=arch), image_size=28, pad_windows=True), NAMES)
    images = np.random.default_rng(0).standard_normal((1, 3, 28, 28)).astype(np.float32)
    logits = teacher(Tensor(images)).asnumpy()
    assert logits.shape == (1, 4) and np.isfinite(logits).all()


def test_a_converted_version_1_keeps_the_window_that_its_weights_have(student, write_teacher, monkeypatch):
    read = {}
    monkeypatch.setattr(teacher_module, "create_model", lambda config: read.update(to_flat_dict(config)) or stop())
    path = write_teacher(meta={}, window_size=8)
    with pytest.raises(Stop):
        build_teacher(student(path, teacher_arch="focal_tiny_patch4_window7_224"), NAMES)
    assert read["window_size"] == 8


def test_errors_about_the_teacher_name_it(student, write_teacher, tmp_path):
    two_stages = dict.fromkeys(("depths", "num_heads", "focal_levels", "focal_windows", "expand_sizes"), [1, 1])
    path = write_teacher(**two_stages, focal_stages=[0, 1])
    with pytest.raises(ConfigError, match=r"^teacher: .*teacher.ckpt does not fit this training: image_size: 4"):
        build_teacher(student(path, image_size=4), NAMES)
    (tmp_path / "torn.ckpt").write_bytes(b"x")
    with pytest.raises(UserError, match=r"^teacher: .*torn.ckpt is damaged"):
        build_teacher(student(str(tmp_path / "torn.ckpt")), NAMES)


def test_without_distillation_there_is_no_teacher(make_config):
    assert build_teacher(make_config()) is None


@pytest.mark.parametrize(
    ("saved", "settings", "message"),
    [
        ({"num_classes": 5}, {}, "teacher: .*teacher.ckpt has 5 classes, but num_classes is 4"),
        ({"num_classes": 0}, {}, "teacher: .* has 0 classes"),
        (
            {"image_mean": [0.5, 0.5, 0.5]},
            {},
            r"teacher: .* has image_mean \[0.5, 0.5, 0.5\], but this training \[0.485",
        ),
        ({"meta": {}}, {}, "teacher_arch: .* does not say which network it holds, and None is not a published model"),
        ({"meta": {}}, {"teacher_arch": "nano"}, "and nano is not a published model; give the name of one"),
        ({}, {"teacher_arch": "focal_tiny_patch4_window7_224"}, "teacher_arch: .*_224, but .* holds focal_nano; omit"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(student, write_teacher, saved, settings, message):
    with pytest.raises(ConfigError, match=message):
        build_teacher(student(write_teacher(**saved), **settings), NAMES)


def test_weights_of_another_network_and_other_class_names_are_refused(student, write_teacher, make_config):
    config = make_config(**SMALL, arch="focal_nano")
    with pytest.raises(UserError, match="teacher: .* does not fit the network .*missing: "):
        meta = {"config": to_flat_dict(config) | {"use_layerscale": True}, "class_names": NAMES}
        build_teacher(student(write_teacher(meta=meta)), NAMES)
    with pytest.raises(ConfigError, match="teacher: the class names of the data differ"):
        build_teacher(student(write_teacher()), NAMES[::-1])
    assert build_teacher(student(write_teacher(), allow_config_change=True), NAMES[::-1]) is not None
