"""In-memory checkpoints: copies of the training state in the memory of every host, far more often than checkpoints on disk.

    step 40   host 0 ▤  host 1 ▤        every host holds its shards of the last two copies, in memory that outlives the process
    step 43   host 0 ╳                  host 0 is lost, with its copies
    restart   host 0 ◄─ ▤ ─ host 1      a pod whose hosts all have the step sends it to the others

The state is replicated over pods (alhena/model/sharding.py), so one intact pod suffices; without one, the last checkpoint on disk is
used. The Gemini 1.0 report writes of its redundant in-memory copies: "In comparison to both PaLM and PaLM-2 ... this provided a
substantial speedup in recovery time".

A copy has a checksum: a truncated or changed one is not used. Its name contains the fingerprint of the training and of its run folder.
Copies of another training, or of a deleted run folder, are never restored, and are removed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from safetensors.numpy import load, save

from alhena.files import write_atomically
from alhena.processes import gather_from_processes
from alhena.shapes import Shaped

Tree = TypeVar("Tree")
SLOT = "ALHENA_SLOT"
_RUN = "run"  # a file beside the copies: the path of the run folder they belong to
COPIES = 2  # while one is written, the previous one is intact
MEMORY = Path("/dev/shm" if os.path.isdir("/dev/shm") else os.environ.get("TMPDIR", "/tmp"))
DATA = "data"  # the name of the array that holds the JSON of the data state


def memory_folder(run: Path, process: int) -> Path:
    """Folder of a process's copies, in its host's memory. SLOT names the folder of a host that resumes under another process index."""
    process = int(os.environ.get(SLOT, process))
    name = hashlib.blake2b(str(run.absolute()).encode(), digest_size=6).hexdigest()
    return _memory() / f"alhena-{name}" / str(process)


def _memory() -> Path:
    return Path(os.environ.get("ALHENA_MEMORY", MEMORY))


def _shards(x: jax.Array) -> list[Any]:
    """The shards of this process, in the order of its devices."""
    return sorted(x.addressable_shards, key=lambda shard: shard.device.id)


class MemoryCheckpoints:
    """Saves and restores ``(state, data state)`` of one process; all processes of a run make the same calls at the same step.

    The constructor removes copies of trainings with another fingerprint from its folder, and logs that.
    """

    def __init__(self, run: Path, process: int, training: str, log: Callable[[str], object]) -> None:
        self.folder, self._run, self._training = memory_folder(run, process), run, training
        _remove_copies_of_deleted_runs(log)
        current = {self._path(step) for step in self._steps()}
        others = [path for path in self.folder.glob("*.copy*") if path not in current]
        for path in others:
            path.unlink()
        if others:
            log(f"{self.folder}: in-memory copies of another training removed ({len(others)})")

    def _path(self, step: int) -> Path:
        return self.folder / f"{self._training}-{step}.copy"

    def save(self, step: int, state: Any, data: Any) -> None:
        leaves = enumerate(jax.tree.leaves(state))
        arrays = {f"{i}.{k}": np.asarray(s.data) for i, leaf in leaves for k, s in enumerate(_shards(leaf))}
        payload = save({**arrays, DATA: np.frombuffer(json.dumps(data).encode(), np.uint8)})
        write_atomically(self.folder / _RUN, str(self._run.absolute()))
        write_atomically(self._path(step), hashlib.blake2b(payload, digest_size=16).digest() + payload)
        for old in self._steps()[COPIES:]:
            self._path(old).unlink()

    def clear(self) -> None:
        """Removes all copies."""
        shutil.rmtree(self.folder, ignore_errors=True)
        # Other processes still have copies there, or none ever had.
        with suppress(OSError):
            self.folder.parent.rmdir()

    def _steps(self) -> list[int]:
        names = (path.stem.removeprefix(f"{self._training}-") for path in self.folder.glob(f"{self._training}-*.copy"))
        return sorted((int(name) for name in names if name.isdecimal()), reverse=True)

    def _read(self, step: int) -> bytes | None:
        """The payload of a copy; None if it is damaged."""
        content = self._path(step).read_bytes()
        intact = hashlib.blake2b(content[16:], digest_size=16).digest() == content[:16]
        return content[16:] if intact else None

    def restore(self, like: Tree, min_step: int = 0) -> tuple[int, Tree, Any] | None:
        """Step, state and data state of the newest step, at least ``min_step``, that some pod has completely; None without one."""
        payloads = self._intact_copies(like)
        steps = np.full(COPIES, -1, np.int64)
        steps[: len(payloads)] = list(payloads)[:COPIES]
        steps = multihost_utils.process_allgather(steps).reshape(-1, COPIES)  # [processes, copies]
        mesh = jax.tree.leaves(like)[0].sharding.mesh
        pods = [{device.process_index for device in pod.flat} for pod in mesh.devices]
        for step in sorted({int(s) for s in steps.flat if s >= max(min_step, 0)}, reverse=True):
            complete = [k for k, pod in enumerate(pods) if all(step in steps[process] for process in pod)]
            if complete:
                state, data = self._assemble(like, payloads.get(step))
                if any(step not in of_process for of_process in steps):
                    state = _broadcast_from_pod(state, complete[0])
                    data = gather_from_processes(data)[min(pods[complete[0]])]
                return step, state, data
        return None

    def _intact_copies(self, like: Any) -> dict[int, bytes]:
        """Payloads by step, newest first, of the copies with the shapes of ``like``. The others are removed.

        They are damaged, or of another mesh. If they stayed, they would count as newer than the copies that are now written.
        """
        out = {}
        for step in self._steps():
            payload = self._read(step)
            if payload is not None and _shapes_of(payload) == _shapes(like):
                out[step] = payload
            else:
                self._path(step).unlink()
        return out

    def _assemble(self, like: Tree, payload: bytes | None) -> tuple[Tree, Any]:
        """Global arrays with the shards of this process from a copy; zeros where it has none."""
        arrays = None if payload is None else load(payload)
        leaves, structure = jax.tree.flatten(like)
        out = []
        for i, leaf in enumerate(leaves):
            shards = _shards(leaf)
            values = [
                np.zeros(s.data.shape, leaf.dtype) if arrays is None else arrays[f"{i}.{k}"]
                for k, s in enumerate(shards)
            ]
            on_devices = [jax.device_put(value, s.device) for value, s in zip(values, shards, strict=True)]
            out.append(jax.make_array_from_single_device_arrays(leaf.shape, leaf.sharding, on_devices))
        return jax.tree.unflatten(structure, out), None if arrays is None else json.loads(arrays[DATA].tobytes())


def _shapes_of(payload: bytes) -> dict[str, tuple[int, ...]]:
    """Shapes of all stored shards, by name."""
    return {name: array.shape for name, array in load(payload).items() if name != DATA}


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Shapes of all shards of this process, by the name under which they are stored."""
    leaves = enumerate(jax.tree.leaves(tree))
    return {f"{i}.{k}": s.data.shape for i, leaf in leaves for k, s in enumerate(_shards(leaf))}


def _remove_copies_of_deleted_runs(log: Callable[[str], object]) -> None:
    """Removes copies of run folders that no longer exist from this host's memory."""
    for marker in _memory().glob(f"alhena-*/*/{_RUN}"):
        run = marker.read_text()
        if not Path(run).exists():
            shutil.rmtree(marker.parent, ignore_errors=True)
            log(f"{marker.parent}: in-memory copies of the deleted run folder {run} removed")


def _broadcast_from_pod(tree: Tree, source: int) -> Tree:
    """Broadcasts the state of pod ``source``, exact to the bit: an integer sum to which all other pods add zeros."""

    def broadcast(x: jax.Array) -> jax.Array:
        assert isinstance(x.sharding, NamedSharding)

        def local(shard: Shaped[jax.Array, ...]) -> Shaped[jax.Array, ...]:
            bits = jax.lax.bitcast_convert_type(shard, jnp.uint32) if shard.dtype == jnp.float32 else shard
            bits = jnp.where(jax.lax.axis_index("pod") == source, bits, jnp.zeros_like(bits))
            return jax.lax.bitcast_convert_type(jax.lax.psum(bits, "pod"), shard.dtype)

        spec = x.sharding.spec
        return jax.jit(jax.shard_map(local, mesh=x.sharding.mesh, in_specs=spec, out_specs=spec, check_vma=False))(x)

    return jax.tree.map(broadcast, tree)
