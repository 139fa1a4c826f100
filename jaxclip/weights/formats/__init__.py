"""File formats of weights: safetensors and npz, read as memory-mapped views."""
