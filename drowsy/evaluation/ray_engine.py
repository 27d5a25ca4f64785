"""Evaluate settings on a Ray cluster: ``drowsy.RayEngine``.

    driver                                       workers, one a GPU or a core
      | network and images ----------------------> Ray's object store, one copy a node
      | a run of settings -----------------------> walk it as a tree
      | <---------------- each result, as soon as it is known
      | store

A run is a stretch of the settings in the tree's order, so that its walk shares what they share.
Each run is a fraction of what is left (guided self-scheduling), so that all workers end together.
When a worker dies, with its process or its node, another takes its place, and what its run had not
yielded is handed out again.
"""

from __future__ import annotations

import copy
import socket
import warnings
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from drowsy._optional import require
from drowsy.evaluation.arguments import check_count
from drowsy.evaluation.engine import Result, Workload
from drowsy.evaluation.evaluator import MAP_CACHE, Evaluator
from drowsy.evaluation.metrics import Counts
from drowsy.evaluation.outputs import placed
from drowsy.knob.schedule import Setting

# A setting that, alone in its run, ended as many workers is what ends them.
MAX_DEATHS = 4
# As many workers in a row that did not come up are no accident.
MAX_FAILED_STARTS = 10
# How long to wait for a worker where none is up.
START_S = 120.0
# Stands for images that travel apart.
_NOT_HERE = torch.empty(0)


class RayEngine:
    """An engine on a Ray cluster.

    Args:
        address: ``auto``, the cluster that this machine belongs to; ``HOST:PORT``, the one with
            this head; ``local``, one of this machine alone, until ``close``. A process that is
            connected to Ray stays with that connection.
        workers: how many at most; None: as many as the cluster has cores, or GPUs.
        threads: of torch in a worker on the CPU, which takes as many cores.

    A network on a GPU gives every worker a GPU of its own. Maps, batches and operations are those
    of ``InProcess``, so with as many threads on the same kind of machine all counts are the same,
    bit for bit. Elsewhere sums of floats may round differently: that moves the last digits of a
    divergence, and a count where two logits lie so close.

    Modules of your own that the network needs must be importable on every node.

    Raises:
        ImportError: without Ray; says how to install it.
        TypeError, ValueError: an argument that is not allowed.
        ConnectionError: no cluster at ``address``.
    """

    def __init__(
        self, address: str = "auto", *, workers: int | None = None, threads: int = 1
    ) -> None:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if address not in ("auto", "local") and not (host and port.isdigit()):
            raise ValueError(f"address: got {address!r}, allowed: auto, local or HOST:PORT")
        for name, value in (("workers", workers), ("threads", threads)):
            if value is not None or name == "threads":
                check_count(name, value)
        self._ray: Any = require("ray", "ray")
        self._limit, self._threads = workers, threads
        self._starting: dict[Any, Any] = {}
        self._idle: list[Any] = []
        self._failed_starts = 0
        self._jobs = 0
        # By the tensor itself: what is no longer used elsewhere leaves the object store.
        self._images = WeakIdKeyDictionary()
        self._connected = not self._ray.is_initialized()
        if self._connected:
            if host:
                # Ray itself would try for minutes.
                _check_reachable(host, int(port))
            self._ray.init(address=address, log_to_driver=False, logging_level="warning")

    def evaluate(
        self, work: Workload, settings: Mapping[int, Sequence[Setting]]
    ) -> Iterator[Result]:
        """See ``Engine``; results come as workers find them.

        Raises:
            RuntimeError: a setting keeps ending workers (it is named), or no worker comes up.
            Exception: what an evaluation raised.
        """
        exceptions = self._ray.exceptions
        todo, job = _Todo(settings), self._job(work)
        wanted = min(self._room(job.device), len(todo))
        self._idle = [worker for worker in self._idle if self._lives(worker)]
        running: dict[Any, _Run] = {}
        try:
            while todo or running:
                self._recruit(wanted - len(running), job.device)
                while todo and self._idle:
                    run = todo.take(2 * wanted, self._idle.pop())
                    walk = run.worker.walk.options(num_returns="streaming")
                    running[walk.remote(job, run.seed, list(run.left))] = run
                for walk in self._wait(running):
                    # To the end, so that no worker's results wait for all of another's.
                    run = running[walk] = running.pop(walk)
                    try:
                        setting, counts = self._ray.get(next(walk))
                    except StopIteration:
                        self._idle.append(running.pop(walk).worker)
                    except exceptions.RayTaskError as error:
                        raise error.cause from error
                    except exceptions.RayError as error:
                        self._ray.kill(running.pop(walk).worker)
                        todo.take_back(run, error)
                    else:
                        del run.left[setting]
                        run.begun = True
                        yield run.seed, setting, counts
        finally:
            # Left early: what is still being walked is of no use.
            for run in running.values():
                self._ray.kill(run.worker)

    def close(self) -> None:
        """End the workers and leave the cluster; a ``local`` one ends."""
        for worker in (*self._idle, *self._starting.values()):
            self._ray.kill(worker)
        self._idle.clear()
        self._starting.clear()
        self._images.clear()
        if self._connected:
            self._ray.shutdown()

    def __enter__(self) -> RayEngine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    # --- workers ------------------------------------------------------------------------------

    def _room(self, device: str) -> int:
        """How many workers the cluster has room for."""
        resource, each = ("GPU", 1) if device == "cuda" else ("CPU", self._threads)
        there = self._ray.cluster_resources().get(resource, 0)
        if there < each:
            raise RuntimeError(
                f"ray: the cluster has {there:g} {resource}, allowed: {each} or more"
            )
        room = int(there // each)
        return room if self._limit is None else min(room, self._limit)

    def _lives(self, worker: Any) -> bool:
        try:
            self._ray.get(worker.ready.remote(), timeout=START_S)
        except self._ray.exceptions.RayError:
            return False
        return True

    def _recruit(self, wanted: int, device: str) -> None:
        """Ask for workers until as many are idle or starting."""
        needs = {"num_gpus": 1} if device == "cuda" else {"num_cpus": self._threads}
        for _ in range(wanted - len(self._idle) - len(self._starting)):
            worker = self._ray.remote(_Worker).options(**needs).remote(self._threads)
            # No work before it answers: a death while it starts is no setting's fault.
            self._starting[worker.ready.remote()] = worker

    def _wait(self, running: Mapping[Any, _Run]) -> list[Any]:
        """Walks that have something to tell; workers that came up become idle."""
        ready, _ = self._ray.wait([*self._starting, *running], timeout=START_S)
        if not ready and not running:
            raise RuntimeError(
                f"ray: no worker came up within {START_S:.0f} s; the cluster has "
                f"{self._ray.available_resources()} available"
            )
        for answer in [each for each in ready if each in self._starting]:
            worker = self._starting.pop(answer)
            try:
                self._ray.get(answer)
            except self._ray.exceptions.RayError as error:
                self._failed_starts += 1
                if self._failed_starts == MAX_FAILED_STARTS:
                    raise RuntimeError(
                        f"ray: {MAX_FAILED_STARTS} workers in a row did not come up; the last: "
                        f"{error}"
                    ) from error
            else:
                self._failed_starts = 0
                self._idle.append(worker)
        return [each for each in ready if each in running]

    def _map_cache(self, device: str) -> int:
        """Bytes of maps that a worker keeps: half of its share of the memory that Ray manages."""
        if device == "cuda":
            return MAP_CACHE
        there = self._ray.cluster_resources().get("memory", 0)
        return min(MAP_CACHE, int(there) // (2 * self._room(device)))

    def _job(self, work: Workload) -> _Job:
        """The work in Ray's object store; images that are there already stay."""
        device = work.images.device.type
        net = work.net if device == "cpu" else copy.deepcopy(work.net).cpu()
        if work.images not in self._images:
            self._images[work.images] = self._ray.put(_pack(work.images))
        self._jobs += 1
        rest = replace(work, net=net, images=_NOT_HERE, map_cache=self._map_cache(device))
        rest = _placed(rest, "cpu")
        return _Job(self._jobs, device, self._images[work.images], self._ray.put(rest))


def _check_reachable(host: str, port: int) -> None:
    try:
        socket.create_connection((host, port), timeout=10).close()
    except OSError as error:
        raise ConnectionError(f"address: no cluster at {host}:{port} ({error})") from error


class _Todo:
    """Settings to be handed out, as stretches of the tree's order."""

    def __init__(self, settings: Mapping[int, Sequence[Setting]]) -> None:
        self._runs = deque((seed, sorted(set(todo))) for seed, todo in settings.items() if todo)
        self._deaths: Counter[tuple[int, Setting]] = Counter()

    def __len__(self) -> int:
        return sum(len(run) for _, run in self._runs)

    def take(self, parts: int, worker: Any) -> _Run:
        """A run for this worker: one of ``parts`` of what is left, all of one seed."""
        size = -(-len(self) // parts)
        seed, run = self._runs.popleft()
        if len(run) > size:
            self._runs.appendleft((seed, run[size:]))
        return _Run(worker, seed, dict.fromkeys(run[:size]))

    def take_back(self, run: _Run, error: Exception) -> None:
        """Hand out again what a dead worker left.

        Raises:
            RuntimeError: it is a single setting, which ended its workers before.
        """
        left = list(run.left)
        half = len(left)
        if left and not run.begun:
            # One of these may be what ended it: halving finds out which.
            half = -(-len(left) // 2)
            if half == len(left):
                self._deaths[run.seed, left[0]] += 1
                if self._deaths[run.seed, left[0]] == MAX_DEATHS:
                    raise RuntimeError(
                        f"ray: setting {left[0]} (seed {run.seed}) ended {MAX_DEATHS} workers; "
                        f"the last: {error}"
                    ) from error
        self._runs.extendleft((run.seed, part) for part in (left[half:], left[:half]) if part)


@dataclass
class _Run:
    """Settings that a worker walks: those it has not yielded, and whether it yielded any."""

    worker: Any
    seed: int
    left: dict[Setting, None]
    begun: bool = False


@dataclass(frozen=True)
class _Job:
    """Work, as references into Ray's object store; ``number`` tells jobs apart."""

    number: int
    device: str
    images: Any
    rest: Any


class _Worker:
    """An actor: keeps the network, images and maps of one job and seed, and walks runs of it."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._held: tuple[int, int] | None = None
        self._work: Workload
        self._evaluator: Evaluator

    def ready(self) -> None:
        """Answer, once the process is up."""

    def walk(
        self, job: _Job, seed: int, settings: list[Setting]
    ) -> Iterator[tuple[Setting, Counts]]:
        """Evaluate settings; yields each as soon as it is known."""
        if self._held != (job.number, seed):
            if self._held is None or self._held[0] != job.number:
                self._work = _load(job)
            self._held = (job.number, seed)
            self._evaluator = self._work.evaluator(seed)
        yield from self._evaluator.walk(settings)


def _load(job: _Job) -> Workload:
    get = require("ray", "ray").get
    work = replace(get(job.rest), images=_unpack(*get(job.images)))
    work.net.to(job.device)
    return _placed(work, job.device)


def _placed(work: Workload, device: str) -> Workload:
    """The work with its tensors on a device, the network where it is."""
    return replace(
        work,
        images=work.images.to(device),
        labels=None if work.labels is None else placed(work.labels, device),
        baseline=None if work.baseline is None else placed(work.baseline, device),
    )


def _pack(tensor: Tensor) -> tuple[Any, torch.dtype, list[int]]:
    """Bytes in the order of memory, which Ray shares between a node's processes without copies."""
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    memory = tensor.cpu().permute(order).contiguous()
    return memory.view(torch.uint8).numpy(), tensor.dtype, order


def _unpack(memory: Any, dtype: torch.dtype, order: list[int]) -> Tensor:
    with warnings.catch_warnings():
        # That memory is shared and must not be written; an evaluator does not.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        tensor = torch.from_numpy(memory).view(dtype)
    return tensor.permute([order.index(axis) for axis in range(len(order))])
