"""Ground floor: from files on disk to host batches. Imports numpy and OpenCV, never jax, never wsca_jax."""

from input_pipeline import celeba, cub, scenes

# Every data set there is. Each module exports SCHEMA, Options and open_split(data_dir, split, options).
SOURCES = {"celeba": celeba, "cub": cub, "scenes": scenes}
