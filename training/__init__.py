"""Labelled images -> model.onnx: data, the network, training and the export in eval mode."""
