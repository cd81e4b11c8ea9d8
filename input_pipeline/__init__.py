"""Ground floor: from files on disk to host batches. Imports numpy and OpenCV, never jax, never wsca_jax."""
