"""A trained model as a file for other programs, or on Hugging Face's hub."""

GRAPHS = ("onnx", "torch_export")
FORMATS = (*GRAPHS, "safetensors", "hub")  # here, so that the parser needs no torch
PLACES = ("inside", "outside")  # of the normalization with mean and standard deviation
TOLERANCE, HALF_TOLERANCE = 1e-4, 1e-2  # of the largest feature; float32 runners differ by about a hundredth of it
