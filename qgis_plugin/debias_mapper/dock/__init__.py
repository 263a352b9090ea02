"""The dock: pick an image, an area and a model, run, and look at the result."""
