"""Ground floor: from files on disk to host batches. Imports numpy and OpenCV, never jax, never wsca_jax.

schema, labels, classes, splits, batch, errors   what an example, its labels and a batch are
weak_labels, text, images, pipeline              what becomes of them on the way to the device
celeba, cub, coco_attributes, folder, scenes     the data sets
storage                                          official files to shards, and back
untrusted                                        archives, pickles and lists that nobody vouches for
"""

from input_pipeline import celeba, coco_attributes, cub, folder, scenes

# Every data set there is. Each module exports Options, schema(data_dir, options) and
# open_split(data_dir, split, options); those that lie in files also export recognises(folder),
# prepare and verify.
SOURCES = {
    "celeba": celeba,
    "coco_attributes": coco_attributes,
    "cub": cub,
    "folder": folder,
    "scenes": scenes,
}
