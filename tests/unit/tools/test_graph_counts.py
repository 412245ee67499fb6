"""Counting operators in MindSpore's graph text: by hand on a few lines."""

from __future__ import annotations

import pytest

from focal.errors import UserError
from tools.graph_report.counts import parse_graph

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
        ("PrimFunc_ConvolutionGrad(%dout, %a, %b)",
         "(<T, (2, 16, 8, 8)>, <T, (2, 3, 32, 32)>, <T, (16, 3, 7, 7)>) -> (<T, (2, 3, 32, 32)>, <T, (16, 3, 7, 7)>)",
         2 * 2 * 2 * 16 * 64 * 147),
        # 5 heads, 7 queries, 11 keys, head size 16: two products of queries, keys and head size; backward five.
        ("PrimFunc_FlashAttentionScore(%q, %k, %v, %shift)",
         "(<T, (2, 5, 7, 16)>, <T, (2, 5, 11, 16)>, <T, (2, 5, 11, 16)>, <T, (1, 5, 7, 11)>) -> "
         "(<T, (2, 5, 7, 8)>, <T, (2, 5, 7, 8)>, <T, (2, 5, 7, 16)>)", 2 * 2 * 2 * 5 * 7 * 11 * 16),
        ("PrimFunc_FlashAttentionScoreGrad(%q, %k, %v, %dy, %maxima)",
         "(<T, (2, 7, 80)>, <T, (2, 11, 80)>, <T, (2, 11, 80)>, <T, (2, 7, 80)>, <T, (2, 5, 7, 8)>) -> "
         "(<T, (2, 7, 80)>, <T, (2, 11, 80)>, <T, (2, 11, 80)>)", 5 * 2 * 2 * 5 * 7 * 11 * 16),
        ("PrimFunc_Add(%a, %b)", "(<T, (2, 3)>, <T, (2, 3)>) -> (<T, (2, 3)>)", 0),
    ],
)  # fmt: skip
def test_operations_of_products_and_convolutions_are_counted(name: str, types: str, operations: int) -> None:
    text = f"  %0(x) = {name} {{attrs}}\n      : {types.replace('<T,', '<Tensor[Float32],')}\n"
    assert parse_graph(text)[0].operations == operations


def test_a_text_that_is_not_a_graph_is_refused() -> None:
    with pytest.raises(UserError, match="holds no operators"):
        parse_graph("hello\nworld")
