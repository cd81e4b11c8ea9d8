"""Where arrays live: a mesh of data and fsdp axes, batches over both, large parameters over fsdp.

Every number of devices computes the same thing: the batch is the global batch, reductions over it are
XLA's, and parameters are gathered whole before the forward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from input_pipeline.batch import AttributeBatch
from wsca_jax.errors import WscaError

AXES = ("data", "fsdp")
Tree = TypeVar("Tree")


def make_mesh(data: int = -1, fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh of `data` x `fsdp` devices.

    Args:
      data: copies of the parameters; -1 takes all the devices that fsdp leaves.
      fsdp: devices over which each copy is spread.
      devices: all of the run's devices by default.

    Raises:
      WscaError: the two do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        raise WscaError(f"mesh.fsdp is {fsdp}; expected a divisor of the {count} devices there are")
    data = count // fsdp if data == -1 else data
    if data * fsdp != count:
        raise WscaError(
            f"mesh of data {data} x fsdp {fsdp} needs {data * fsdp} devices, found {count}; "
            "set mesh.data to -1 to use all"
        )
    # Auto: the compiler places what we do not. Under jax's default, Explicit, z @ z.T over a batch raises.
    return jax.make_mesh((data, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


@dataclasses.dataclass(frozen=True)
class Layout:
    """One rule for where each array of a training state lives, by its shape alone.

    An optimiser slot or an average has its parameter's shape and so lies beside it.

    Attributes:
      mesh: as `make_mesh` returns it.
      shard_from: arrays with at least this many elements are spread over fsdp; smaller ones are copied,
        because gathering them would cost more than their memory.
    """

    mesh: Mesh
    shard_from: int = 2**16

    @property
    def replicated(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Leading axis over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXES))

    @property
    def microbatches(self) -> NamedSharding:
        """[microbatch, row, ...]: rows over all devices."""
        return NamedSharding(self.mesh, PartitionSpec(None, AXES))

    def sharding(self, shape: tuple[int, ...]) -> NamedSharding:
        """A state array's: its largest axis that divides over fsdp, or replicated where there is none."""
        parts = self.mesh.shape["fsdp"]
        if parts == 1 or int(np.prod(shape)) < self.shard_from:
            return self.replicated
        divisible = [axis for axis, size in enumerate(shape) if size % parts == 0]
        if not divisible:
            return self.replicated
        largest = max(divisible, key=lambda axis: shape[axis])
        return NamedSharding(self.mesh, PartitionSpec(*(None,) * largest, "fsdp"))

    def shardings(self, tree: Any) -> Any:
        """The sharding of every array of a state, or of any part of one, as a tree of the same structure."""
        return jax.tree.map(lambda x: self.sharding(x.shape), tree)

    def abstract(self, tree: Tree) -> Tree:
        """Shapes and dtypes of a tree, with the shardings its arrays should have."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.sharding(x.shape)), tree
        )

    def gather(self, params: Tree) -> Tree:
        """Parameters whole on every device; call it inside the loss, or XLA moves activations instead."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.replicated), params)

    def scatter(self, gradients: Tree) -> Tree:
        """Gradients summed and left where their parameters live."""
        return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, self.sharding(x.shape)), gradients)

    def check_batch_size(self, size: int, accumulate: int = 1) -> None:
        """Raises WscaError where a global batch does not split evenly over microbatches and devices."""
        devices = self.mesh.size
        if size % (devices * accumulate):
            over = f"{devices} devices" + (f" x {accumulate} microbatches" if accumulate > 1 else "")
            raise WscaError(
                f"a global batch of {size} examples does not divide over {over}; "
                f"make it a multiple of {devices * accumulate}"
            )

    def put_batch(self, batch: AttributeBatch) -> AttributeBatch:
        """Moves this process's rows of a global batch to its devices.

        Raises:
          WscaError: the global batch does not divide over the devices.
        """
        self.check_batch_size(len(batch.weight) * jax.process_count())
        return jax.tree.map(
            lambda rows: jax.make_array_from_process_local_data(self.batch, np.asarray(rows)), batch
        )
