"""Exported networks: MINDIR and AIR by MindSpore, ONNX written from the network's weights and tables."""
