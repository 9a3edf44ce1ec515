"""The int8 and float16 files of a float32 one: made, judged and diagnosed from ONNX files and pixels, without torch."""
