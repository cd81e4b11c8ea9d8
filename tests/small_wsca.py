"""The `wsca` command with a trunk that compiles in no time, and batches that leave time to be interrupted.

    python tests/small_wsca.py train --config ...

WSCA_PAUSE: seconds that each training batch takes. WSCA_BAD_BATCH: of this one the data cannot be read.
WSCA_FILE_LIMIT: bytes at which a file is too large for the disk.
"""

import dataclasses
import os
import resource
import subprocess
import sys
import time

import flax.linen as nn

from input_pipeline.errors import DataError
from wsca_jax import assembly, cli
from wsca_jax.models.resnet import Stages

build_method, train_batches = assembly.build_method, assembly.train_batches


class Trunk(nn.Module):
    """Linear layers on patches, with statistics of the whole batch."""

    @nn.compact
    def __call__(self, image, *, train, weight=None):
        b, h, w, c = image.shape
        x = image.reshape(b, h // 8, 8, w // 8, 8, c).transpose(0, 1, 3, 2, 4, 5)
        x = nn.Dense(16, use_bias=False, name="patches")(x.reshape(b, h // 8, w // 8, -1))
        x = nn.relu(nn.BatchNorm(use_running_average=not train, name="norm")(x))
        return Stages(x, x, x, nn.Dense(16, name="last")(x))


def build_small_method(*arguments, **options):
    method = build_method(*arguments, **options)
    return dataclasses.replace(method, model=method.model.clone(trunk=Trunk()))


def slow_batches(config, text, source, start_step, stop_step):
    bad = int(os.environ.get("WSCA_BAD_BATCH", -1))
    batches = train_batches(config, text, source, start_step, stop_step)
    for step, batch in enumerate(batches, start_step):
        if step == bad:
            raise DataError(f"image {source[int(batch.index[0])].key}: cannot be read")
        time.sleep(float(os.environ.get("WSCA_PAUSE", 0)))
        yield batch


def print_through_another_process():
    """So that the limit on files is not one on what this process prints into one."""
    through = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    for stream in (1, 2):
        os.dup2(through.stdin.fileno(), stream)


if __name__ == "__main__":
    if limit := int(os.environ.get("WSCA_FILE_LIMIT", 0)):
        print_through_another_process()
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    assembly.build_method, assembly.train_batches = build_small_method, slow_batches
    sys.exit(cli.main())
