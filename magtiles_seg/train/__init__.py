"""Training: one function an idea, on CPU and CUDA alike."""
