"""The int8 and float16 files of a float32 one: made, judged, looked into; from ONNX files and pixels, without torch."""
