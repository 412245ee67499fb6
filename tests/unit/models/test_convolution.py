"""The convolution to tokens in all its forms against NumPy, values and gradients."""

from __future__ import annotations

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor

from focal.models.ascend_forms import use_ascend_forms
from focal.models.convolution import ConvolveToTokens, patch_table
from focal.models.cpu_forms import use_cpu_forms
from focal.models.inference import prepare_for_export

# In and out channels, kernel, stride, padding, height, width. Tails of maps that no patch covers, and widths that rows
# of several pixels do not divide, are among them.
SHAPES = {
    "stem": (3, 5, 7, 4, 2, 16, 24),
    "stem on an odd map": (3, 5, 7, 4, 2, 13, 17),
    "downsampling": (6, 4, 3, 2, 1, 8, 6),
    "downsampling of an odd map": (6, 4, 3, 2, 1, 7, 5),
    "patches of 4": (3, 5, 4, 4, 0, 16, 8),
    "patches of 4 with a rest": (3, 5, 4, 4, 0, 18, 15),
    "patches of 2": (6, 4, 2, 2, 0, 6, 8),
}
pytestmark = pytest.mark.usefixtures("pynative_mode")


def random(*shape):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(np.float32)


def build(shape):
    cell = ConvolveToTokens(*shape)
    for parameter in cell.get_parameters():
        parameter.set_data(Tensor(random(*parameter.shape)))
    return cell, random(2, shape[0], *shape[5:])


def windows_of(x, kernel, stride, padding):
    x = np.pad(x, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
    return np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), (2, 3))[:, :, ::stride, ::stride]


def reference(x, weight, bias, stride, padding):
    windows = windows_of(x, weight.shape[2], stride, padding)
    result = np.einsum("bchwij,ocij->bhwo", windows, weight) + bias
    return result.reshape(len(x), -1, len(bias))


def reference_gradients(x, weight, dout, stride, padding):
    """Of x, weight and bias, by the definition: every product's share goes to its two factors."""
    kernel = weight.shape[2]
    windows = windows_of(x, kernel, stride, padding)
    height, width = windows.shape[2:4]
    dout = dout.reshape(len(x), height, width, -1)
    padded = np.zeros((*x.shape[:2], *(size + 2 * padding for size in x.shape[2:])), np.float32)
    for i in range(height):
        for j in range(width):
            share = np.einsum("bo,ocij->bcij", dout[:, i, j], weight)
            padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel] += share
    dx = padded[:, :, padding : padding + x.shape[2], padding : padding + x.shape[3]]
    return dx, np.einsum("bchwij,bhwo->ocij", windows, dout), dout.sum((0, 1, 2))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("form", ["cpu", "plain"])
def test_values_and_gradients_are_those_of_a_convolution(name, form):
    cell, x = build(SHAPES[name])
    assert cell.for_cpu is True
    use_cpu_forms(cell, form == "cpu")
    stride, padding = SHAPES[name][3:5]
    weight, bias = cell.weight.asnumpy(), cell.bias.asnumpy()
    expected = reference(x, weight, bias, stride, padding)
    tokens = cell(Tensor(x)).asnumpy()
    assert tokens.shape == expected.shape
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=2e-5)

    dout = random(*expected.shape)
    factor = Tensor(dout)
    dx, (dweight, dbias) = ms.grad(lambda x: (cell(x) * factor).sum(), 0, ms.ParameterTuple([cell.weight, cell.bias]))(
        Tensor(x)
    )
    for actual, wanted in zip((dx, dweight, dbias), reference_gradients(x, weight, dout, stride, padding)):
        assert actual.shape == wanted.shape
        np.testing.assert_allclose(actual.asnumpy(), wanted, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_an_ascend_convolves_in_one_kernel(name):
    cell, x = build(SHAPES[name])
    use_cpu_forms(cell, False)
    use_ascend_forms(cell, True)
    asked = []

    def convolve(x, weight, bias, stride, padding, dilation, groups):
        """Stands in for the primitive, which a CPU does not have, with the meaning that MindSpore documents."""
        asked.append((stride, padding, dilation, groups))
        result = reference(x.asnumpy(), weight.asnumpy(), bias.asnumpy(), stride[0], padding[0])
        height = (x.shape[2] + 2 * padding[0] - weight.shape[2]) // stride[0] + 1
        return Tensor(result.transpose(0, 2, 1).reshape(len(result), len(bias), height, -1))

    object.__setattr__(cell, "convolve", convolve)
    stride, padding = SHAPES[name][3:5]
    expected = reference(x, cell.weight.asnumpy(), cell.bias.asnumpy(), stride, padding)
    np.testing.assert_allclose(cell(Tensor(x)).asnumpy(), expected, rtol=1e-6)
    assert asked == [((stride, stride), (padding, padding), (1, 1), 1)]


def test_half_precision_products_run_on_a_cpu():
    cell, x = build(SHAPES["downsampling"])
    expected = cell(Tensor(x)).asnumpy()
    cell.to_float(ms.float16)
    tokens = cell(Tensor(x))
    assert tokens.dtype == ms.float16
    np.testing.assert_allclose(tokens.asnumpy(), expected, rtol=0.02, atol=0.05)


def test_an_exported_network_holds_the_convolution():
    cell, _ = build(SHAPES["stem"])
    use_ascend_forms(cell, True)
    prepare_for_export(cell)
    assert (cell.for_cpu, cell.for_ascend) == (False, False)


def test_patches_are_rows_of_the_map():
    """Kernel 3, stride 2, padding 1 on a map of 2 x 4: the lines above and the columns to the left are padding."""
    assert patch_table(2, 4, 3, 2, 1, 1).tolist() == [
        [[[-1, -1, -1], [-1, 0, 1], [-1, 4, 5]], [[-1, -1, -1], [1, 2, 3], [5, 6, 7]]]
    ]


def test_rows_of_several_pixels_start_each_patch():
    """Kernel 3, stride 2, padding 2, in rows of two pixels: the second row's last pixel is beyond the kernel."""
    assert patch_table(1, 4, 3, 2, 2, 2)[0, :, 2].tolist() == [[-1, 0], [0, 1], [1, -1]]
