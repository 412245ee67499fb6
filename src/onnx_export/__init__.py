"""ONNX files, written with the onnx package from the network's weights and tables."""
