"""Reading the kernels of MindSpore's last graph: by hand on a few nodes as the Ascend backend of 2.8.0 writes them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.ascend_dry_run.launches import Launch, describe, read_launches

GRAPH_FILE = "hwopt_d_after_stream_assign_0_0575.ir"
# A parameter copied, multiplied and gathered from; a fused kernel; a message; what the compiler keeps for itself.
GRAPH = """# IR entry: @kernel_graph0
%para1_w: <Ref[Tensor[Float32]], (32, 16), ref_key=w>  :  <Float32xDefaultFormat[const vector]{32, 16}>  :  IsWeight: true
subgraph @kernel_graph0() {
  %0(U) = UpdateState(U) primitive_attrs: {}
      : (<UMonad, NoShape>) -> (<UMonad, NoShape>)
  %1(a) = TensorMove(%para1_w) primitive_attrs: {stream_id: U32(0)} cnode_attrs: {checkpoint: Bool(1)}
      : (<Ref[Tensor[Float32]], (32, 16), ref_key=w>) -> (<Tensor[Float32], (32, 16)>)
      : (<Float32xDefaultFormat[const vector]{32, 16}>) -> (<Float32xNCHW[const vector]{32, 16}>)
      : (Tensor) -> (Tensor)
      # Fullname with scope: (Default/TensorMove-op0)
      # In file src/focal/models/layers.py:57, 4~22/    cdf = self.normal_cdf(x)/
  %2(p) = PrimFunc_MatMul(%para0_x, %1, Bool(1), Bool(1)) primitive_attrs: {visited: Bool(1)} cnode_attrs: {}
      : (<Tensor[Float16], (16, 8)>, <Tensor[Float16], (32, 16)>, <Bool, NoShape>, <Bool, NoShape>) -> (<Tensor[Float16], (8, 32)>)
      : (<Float16xDefaultFormat[const vector]{16, 8}>, <Float16xDefaultFormat[const vector]{32, 16}>, <BoolxDefaultFormat[const vector]{}>, <BoolxDefaultFormat[const vector]{}>) -> (<Float16xDefaultFormat[const vector]{8, 32}>)
      : (Tensor, Tensor, Scalar, Scalar) -> (Tensor)
      # Fullname with scope: (Default/net/MatMul-op0)
  %3(r) = PrimFunc_Reshape(%2, (I64(32), I64(8))) primitive_attrs: {}
      : (<Tensor[Float16], (8, 32)>, <Tuple[Int64*2], TupleShape(NoShape, NoShape)>) -> (<Tensor[Float16], (32, 8)>)
      : (<Float16xDefaultFormat[const vector]{8, 32}>, <Int64xDefaultFormat[const vector]{}>) -> (<Float16xDefaultFormat[const vector]{32, 8}>)
      # Fullname with scope: (Default/Reshape-op0)
  %4(g) = PrimFunc_Gather(%3, Tensor(shape=[2, 1], dtype=Int32, value=
[[1]
 [3]]), I64(0), I64(0)) primitive_attrs: {}
      : (<Tensor[Float16], (32, 8)>, <Tensor[Int32], (2, 1), value=...>, <Int64, NoShape>, <Int64, NoShape>) -> (<Tensor[Float16], (2, 1, 8)>)
      : (<Float16xDefaultFormat[const vector]{32, 8}>, <Int32xDefaultFormat[const vector]{2, 1}>, <Int64xDefaultFormat[const vector]{}>, <Int64xDefaultFormat[const vector]{}>) -> (<Float16xDefaultFormat[const vector]{2, 1, 8}>)
      # Fullname with scope: (Default/net/Gather-op0)
  %5(c) = GraphKernel_Cast_Add_fusion(%4, %para3_b) primitive_attrs: {graph_kernel: "Cast_Add_fusion"}
      : (<Tensor[Float16], (2, 1, 8)>, <Tensor[Float32], (8)>) -> (<Tensor[Float32], (2, 1, 8)>)
      : (<Float16xDefaultFormat[const vector]{2, 1, 8}>, <Float32xDefaultFormat[const vector]{8}>) -> (<Float32xDefaultFormat[const vector]{2, 1, 8}>)
      # Fullname with scope: (Default/GraphKernel_Cast_Add_fusion-op0)
  %6(m) = AllReduce(%5, %1) primitive_attrs: {op: "sum"}
      : (<Tensor[Float32], (2, 1, 8)>, <Tensor[Float32], (32, 16)>) -> (<Tuple[Tensor[Float32]*2], TupleShape((2, 1, 8), (32, 16))>)
      : (<Float32xDefaultFormat[const vector]{2, 1, 8}>, <Float32xDefaultFormat[const vector]{32, 16}>) -> (<Float32xDefaultFormat[const vector]{2, 1, 8}>, <Float32xDefaultFormat[const vector]{32, 16}>)
      # Fullname with scope: (Default/AllReduce-op0)
  %7(s) = PrimFunc_Assign(%para1_w, %1, U) primitive_attrs: {side_effect_mem: Bool(1)}
      : (<Ref[Tensor[Float32]], (32, 16), ref_key=w>, <Tensor[Float32], (32, 16)>, <UMonad, NoShape>) -> (<Ref[Tensor[Float32]], (32, 16), ref_key=w>)
      : (<Float32xDefaultFormat[const vector]{32, 16}>, <Float32xDefaultFormat[const vector]{32, 16}>) -> (<Float32xDefaultFormat[const vector]{32, 16}>)
      # Fullname with scope: (Default/Assign-op0)
  Return(%7) primitive_attrs: {}
      : (<Ref[Tensor[Float32]], (32, 16), ref_key=w>)
}
"""  # noqa: E501
ACTORS = """%4 = kernel_graph0:TensorMove-op0(%param_w)
	# AID : 2_Default/TensorMove-op0
%5 = kernel_graph0:Assign-op0(%4[0])
	# AID : 4_Default/Assign-op0
%6 = 3_FusionActor(%5[0])
	# AID : 3_FusionActor
%7 = kernel_graph0:MatMul-op0(%4[0])
	# AID : 5_Default/net/MatMul-op0
	# AID : 7_Default/net/Gather-op0
	# AID : 9_Default/GraphKernel_Cast_Add_fusion-op0
	# AID : 8_Default/AllReduce-op0
"""


@pytest.fixture
def launches(tmp_path: Path) -> list[Launch]:
    (tmp_path / GRAPH_FILE).write_text(GRAPH, encoding="utf-8")
    return read_launches(tmp_path / GRAPH_FILE)


def test_a_kernel_is_a_node_with_types_on_the_device(launches: list[Launch]) -> None:
    names = ["TensorMove", "MatMul", "Reshape", "Gather", "GraphKernel_Cast_Add_fusion", "AllReduce", "Assign"]
    assert [launch.primitive for launch in launches] == names
    product = launches[1]
    assert product.inputs == (("Float16", (16, 8), "DefaultFormat"), ("Float16", (32, 16), "DefaultFormat"))
    assert describe(product.inputs) == "Float16 16x8, Float16 32x16"  # without the flags, which are no data
    assert describe(launches[0].outputs) == "Float32 32x16 NCHW"


def test_bytes_are_those_that_a_kernel_moves(launches: list[Launch]) -> None:
    weights = 4 * 32 * 16
    assert [launch.bytes for launch in launches] == [
        2 * weights,  # a copy: read and written
        2 * (16 * 8 + 32 * 16 + 8 * 32),
        0,  # a reshape launches nothing
        2 * (2 * 2 * 8) + 4 * 2,  # the rows taken, read and written, and their indices; not all 32 rows
        2 * 2 * 8 + 4 * 8 + 4 * 2 * 8,  # a fused kernel: what goes in and what comes out
        2 * (4 * 2 * 8 + weights),
        2 * weights,  # what is overwritten is not read
    ]
    view = Launch("TransposeView", launches[0].inputs, launches[0].outputs)
    assert view.bytes == 0


def test_operations_are_those_of_products(launches: list[Launch]) -> None:
    assert [launch.operations for launch in launches] == [0, 2 * 8 * 32 * 16, 0, 0, 0, 0, 0]


def test_the_order_is_that_of_the_actors_where_they_are_dumped(tmp_path: Path) -> None:
    (tmp_path / GRAPH_FILE).write_text(GRAPH, encoding="utf-8")
    (tmp_path / "actor_set").mkdir()
    (tmp_path / "actor_set" / "final_actor_set_kernel_graph_0.ir").write_text(ACTORS, encoding="utf-8")
    names = [launch.primitive for launch in read_launches(tmp_path / GRAPH_FILE) if launch.bytes]
    assert names == ["TensorMove", "Assign", "MatMul", "Gather", "AllReduce", "GraphKernel_Cast_Add_fusion"]
