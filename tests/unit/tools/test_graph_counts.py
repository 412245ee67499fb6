"""Counting operators in MindSpore's graph text: by hand on a few lines, and for a small network compiled here."""

from __future__ import annotations

from pathlib import Path

import pytest

from focal.config import load_config
from focal.errors import UserError
from focal.models.macs import actual_macs
from tests.integration.test_distributed import NANO
from tools.graph_report.counts import dump_training_graph, kernels, parse_graph
from tools.scaling import count_graph

# y = relu(x W + b), then twice y: shapes (8, 16) x (16, 32).
GRAPH = """
  %0(w) = Load(%para1_w, UMonad[U])
      : (<Ref[Tensor[Float32]], (32, 16), ref_key=w>, <UMonad, NoShape>) -> (<Tensor[Float32], (32, 16)>)
  %1(p) = PrimFunc_MatMul(%para0_x, %0, Bool(0), Bool(1)) {instance name: matmul} cnode_attrs: {}
      : (<Tensor[Float32], (8, 16)>, <Tensor[Float32], (32, 16)>, <Bool, NoShape>, <Bool, NoShape>) -> (<Tensor[Float32], (8, 32)>)
  %2(b) = PrimFunc_BiasAdd(%1, %para2_b, I64(0))
      : (<Tensor[Float32], (8, 32)>, <Tensor[Float32], (32)>, <Int64, NoShape>) -> (<Tensor[Float32], (8, 32)>)
  %3(r) = PrimFunc_ReLU(%2)
      : (<Tensor[Float32], (8, 32)>) -> (<Tensor[Float32], (8, 32)>)
  %4(s) = PrimFunc_Reshape(%3, (I64(32), I64(8)))
      : (<Tensor[Float32], (8, 32)>, <Tuple[Int64*2], TupleShape(NoShape, NoShape)>) -> (<Tensor[Float32], (32, 8)>)
  %5(g) = PrimFunc_Gather(%4, Tensor(shape=[4], dtype=Int32, value=[...]), I64(0), I64(0))
      : (<Tensor[Float32], (32, 8)>, <Tensor[Int32], (4), value=...>, <Int64, NoShape>, <Int64, NoShape>) -> (<Tensor[Float32], (4, 8)>)
  %6(l) = PrimFunc_LayerNorm(%5, %para3_g, %para4_b, I64(-1), I64(-1), F32(1e-05))
      : (<Tensor[Float16], (4, 8)>, <Tensor[Float32], (8)>, <Tensor[Float32], (8)>, <Int64, NoShape>, <Int64, NoShape>, <Float32, NoShape>) -> (<Tuple[Tensor[Float16],Tensor[Float32]*2], TupleShape((4, 8), (4, 1), (4, 1))>)
"""  # noqa: E501


def test_operations_and_bytes_are_those_counted_by_hand() -> None:
    by_name = {operator.name: operator for operator in parse_graph(GRAPH)}
    product = by_name["MatMul"]
    assert product.operations == 2 * 8 * 32 * 16
    assert product.read == 4 * (8 * 16 + 32 * 16) and product.written == 4 * 8 * 32
    assert by_name["Load"].read == by_name["Reshape"].written == 0  # these move nothing
    assert by_name["Gather"].read == 4 * 4 * 8 + 4 * 4  # the rows it takes, not the whole table
    norm = by_name["LayerNorm"]
    assert norm.read == 2 * 32 + 2 * 4 * 8 and norm.written == 2 * 32 + 2 * 4 * 4
    kinds = {name: operator.kind for name, operator in by_name.items()}
    assert kinds == {"Load": "free", "MatMul": "matrix", "BiasAdd": "elementwise", "ReLU": "elementwise",
                     "Reshape": "free", "Gather": "movement", "LayerNorm": "reduction"}  # fmt: skip


def test_a_fused_chain_reads_and_writes_its_ends_only() -> None:
    operators = parse_graph(GRAPH)
    plain, fused = kernels(operators, fuse=False), kernels(operators, fuse=True)
    assert len(plain) == 5 and len(fused) == 4
    chain = next(kernel for kernel in fused if kernel.kind == "elementwise")
    assert chain.bytes == 4 * (8 * 32 + 32 + 8 * 32)  # product in, bias in, result out: what lies between stays inside
    assert sum(kernel.operations for kernel in fused) == sum(kernel.operations for kernel in plain)


@pytest.mark.parametrize(
    ("name", "types", "operations"),
    [
        ("PrimFunc_MatMul(%a, %b, Bool(1), Bool(0))",
         "(<T, (16, 8)>, <T, (16, 32)>) -> (<T, (8, 32)>)", 2 * 8 * 32 * 16),
        ("PrimFunc_BatchMatMul(%a, %b, Bool(0), Bool(1))",
         "(<T, (2, 3, 8, 16)>, <T, (2, 3, 32, 16)>) -> (<T, (2, 3, 8, 32)>)", 2 * 6 * 8 * 32 * 16),
        ("Conv2D(%a, %b)", "(<T, (2, 3, 32, 32)>, <T, (16, 3, 7, 7)>) -> (<T, (2, 16, 8, 8)>)", 2 * 2 * 16 * 64 * 147),
        ("Conv2DBackpropInput(%a, %b, (I64(2), I64(3), I64(32), I64(32)))",
         "(<T, (2, 16, 8, 8)>, <T, (16, 3, 7, 7)>) -> (<T, (2, 3, 32, 32)>)", 2 * 2 * 16 * 64 * 147),
        ("Conv2DBackpropFilter(%a, %b, (I64(16), I64(3), I64(7), I64(7)))",
         "(<T, (2, 16, 8, 8)>, <T, (2, 3, 32, 32)>) -> (<T, (16, 3, 7, 7)>)", 2 * 2 * 16 * 64 * 147),
        ("PrimFunc_Dense(%a, %b, %c) primitive_attrs: {visited: Bool(1)}",
         "(<T, (2, 8, 16)>, <T, (32, 16)>, <T, (32)>) -> (<T, (2, 8, 32)>)", 2 * 2 * 8 * 32 * 16),
        ("PrimFunc_Conv2DExt(%a, %b, %c)",
         "(<T, (2, 3, 32, 32)>, <T, (16, 3, 7, 7)>, <T, (16)>) -> (<T, (2, 16, 8, 8)>)", 2 * 2 * 16 * 64 * 147),
        ("PrimFunc_ConvolutionGrad(%a, %b, %c, %d, (I64(4), I64(4)), Bool(0), I64(1), (I64(1), I64(1), I64(1)))",
         "(<T, (2, 16, 8, 8)>, <T, (2, 3, 32, 32)>, <T, (16, 3, 7, 7)>, <T, (16)>) -> (<T, (2, 3, 32, 32)>)",
         2 * 2 * 2 * 16 * 64 * 147),
        ("PrimFunc_ConvolutionGrad(%a, %b, %c, %d, (I64(4), I64(4)), Bool(0), I64(1), (I64(0), I64(1), I64(1)))",
         "(<T, (2, 16, 8, 8)>, <T, (2, 3, 32, 32)>, <T, (16, 3, 7, 7)>, <T, (16)>) -> (<T, (16, 3, 7, 7)>)",
         2 * 2 * 16 * 64 * 147),
        ("PrimFunc_Add(%a, %b)", "(<T, (2, 3)>, <T, (2, 3)>) -> (<T, (2, 3)>)", 0),
    ],
)  # fmt: skip
def test_operations_of_products_and_convolutions_are_counted(name: str, types: str, operations: int) -> None:
    text = f"  %0(x) = {name} {{attrs}}\n      : {types.replace('<T,', '<Tensor[Float32],')}\n"
    assert parse_graph(text)[0].operations == operations


def test_a_text_that_is_not_a_graph_is_refused() -> None:
    with pytest.raises(UserError, match="holds no operators"):
        parse_graph("hello\nworld")


def test_the_graph_of_a_small_network_agrees_with_the_models_own_count(tmp_path: Path) -> None:
    """Matrix operations of forward and backward are three times those of the forward pass, by the model's own count."""
    (tmp_path / "nano.yaml").write_text(NANO)
    text, result = dump_training_graph(str(tmp_path / "nano.yaml"), 16, tmp_path)
    counts = count_graph(result["arch"], result["batch"], text, result["sizes"])
    forward = 2 * actual_macs(load_config(tmp_path / "nano.yaml").model) * 16
    # Not to the digit: the first convolution needs no gradient of the image (less), coordinate MLPs have some (more).
    assert 2.6 * forward < counts.operations < 3.3 * forward
    assert counts.bytes(fused=True) < counts.bytes(fused=False)
    assert sum(counts.buckets) == sum(result["sizes"]) and len(counts.buckets) == 1
