"""The exported network at serving time: ONNX Runtime, vocabulary, scores."""
