"""The processes that train one network together, started by ``torchrun``.

A :class:`Team` of one does nothing, so that the loop reads the same for one process and for several. Several take every
``world``-th sample of each batch, and the mean of their gradients is that of the whole batch. It is made in one message
after the backward pass: that takes a hundredth of a step, and the order of summation is always the same.

What the processes tell each other besides tensors is JSON, never pickle. They share one folder for the run.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from unet_med.errors import MachineError, UsageError

T = TypeVar("T")

STEP_SECONDS = 1800.0
"""Longest time that a process waits for the others within a step. One that ended is noticed at once."""

PHASE_SECONDS = 7 * 24 * 3600.0
"""Longest time that a process waits where the others may have hours of work, as in preparing cases."""


class Team:
    """The processes that train together; this one is alone."""

    rank = 0
    world = 1

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes, records and decides."""
        return self.rank == 0

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replaces each of the tensors, which share a dtype and a device, by its mean over the team."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum over the team; no gradient flows through it."""
        return tensor.detach()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Returns for each flag whether it is up anywhere in the team."""
        return flags

    def share(self, value: T) -> T:
        """Returns the value of the process that leads, which is made of what JSON knows."""
        return value

    def gather(self, value: T) -> list[T]:
        """Returns the values of all, by rank, which are made of what JSON knows; waits for as long as they take."""
        return [value]

    def deal(self, items: Sequence[T]) -> list[T]:
        """Returns this process's share of work that any of them can do."""
        return list(items[self.rank :: self.world])

    def workers(self, wanted: int) -> int:
        """Returns how many of ``wanted`` loader processes each of the team has: its cores bound them."""
        return wanted if self.world == 1 else min(wanted, available_cores() // launched_here())


class _Launched(Team):
    """Processes that ``torchrun`` started, connected by gloo and, for tensors on cards, by NCCL."""

    def __init__(self, step_seconds: float) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        with _together():
            self._phases = dist.new_group(backend="gloo", timeout=timedelta(seconds=PHASE_SECONDS))
            self._steps = dist.new_group(backend="gloo", timeout=timedelta(seconds=step_seconds))

    def leave(self) -> None:
        """Lets go of the connections.

        A thread of gloo's may still hold the tensors of the last message. It is joined with the last reference to its
        group: were that left to the end of the interpreter, the process would be aborted.
        """
        del self._phases, self._steps
        dist.destroy_process_group()

    def average(self, tensors: Sequence[torch.Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        flat = self.sum(flat).div_(self.world)
        for tensor, mean in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(mean.view(tensor.shape))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.detach().clone(memory_format=torch.contiguous_format)
        with _together():
            dist.all_reduce(total, group=None if total.is_cuda else self._steps)
        return total

    def any(self, *flags: bool) -> tuple[bool, ...]:
        return tuple(bool(count) for count in self.sum(torch.tensor(flags, dtype=torch.float32)))

    def share(self, value: T) -> T:
        return self.gather(value if self.leads else None)[0]  # type: ignore[return-value]

    def gather(self, value: T) -> list[T]:
        message = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
        with _together():
            dist.all_gather(sizes, torch.tensor([len(message)]), group=self._phases)
            longest = int(max(sizes))
            messages = [torch.zeros(longest, dtype=torch.uint8) for _ in range(self.world)]
            padded = torch.zeros(longest, dtype=torch.uint8)
            padded[: len(message)] = message
            dist.all_gather(messages, padded, group=self._phases)
        return [json.loads(bytes(m[: int(s)].numpy())) for m, s in zip(messages, sizes, strict=True)]


class BatchSums:
    """Gives the loss of a piece of a batch the sums of the whole batch, so that the mean over pieces is its loss.

    A batch lies in pieces, ``pieces`` in each process. One piece for each process takes a message for each sum. With
    several, the network sees every piece a first time, within :meth:`learning`, before it is known what to sum up.

    Every piece computes the same value from a sum, so that the derivative of the value by the sum is the same for all:
    times their number it is right for the mean over pieces, and nothing has to be sent in the backward pass.
    """

    def __init__(self, team: Team, pieces: int) -> None:
        self._team = team
        self._alone = pieces == 1
        self._everywhere = pieces * team.world
        self._totals: list[torch.Tensor] = []
        self._learns = False
        self._calls = 0

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Within, what the loss sums up is learnt from all pieces."""
        self._totals, self._learns = [], True
        try:
            yield
        finally:
            self._learns = False
        self._totals = [self._team.sum(total) for total in self._totals]

    def start_piece(self) -> None:
        """The loss of another piece is about to be computed; it asks for the same sums in the same order."""
        self._calls = 0

    def __call__(self, part: torch.Tensor) -> torch.Tensor:
        """Returns the sum of ``part`` over all pieces, with the gradient of :class:`BatchSums`."""
        call, self._calls = self._calls, self._calls + 1
        if self._learns:
            if call == len(self._totals):
                self._totals.append(torch.zeros_like(part))
            self._totals[call] += part.detach()
            return part
        total = self._team.sum(part) if self._alone else self._totals[call]
        return total + (part - part.detach()) * self._everywhere


def launched_processes() -> int:
    """Returns how many processes ``torchrun`` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def launched_here() -> int:
    """Returns how many of them run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def own_device(device: torch.device) -> torch.device:
    """Returns this process's own card, or ``device`` where there is one process or no card.

    Raises:
        UsageError: when processes outnumber cards, or share something else than a CPU.
    """
    if launched_processes() == 1 or device.type == "cpu":
        return device
    local, here = int(os.environ["LOCAL_RANK"]), launched_here()
    cards = torch.cuda.device_count() if device.type == "cuda" else 0
    if here > cards:
        raise UsageError(
            f"{here} processes for {cards} cards", "torchrun", "start one process for each card, or use --device cpu"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


@contextmanager
def open_team(device: torch.device, step_seconds: float = STEP_SECONDS) -> Iterator[Team]:
    """Joins the processes that ``torchrun`` started; without it, the team is this process alone.

    ``torchrun`` gives each process one thread unless told otherwise; here each gets its share of the cores.

    Args:
        device: What :func:`own_device` returned.
        step_seconds: See :data:`STEP_SECONDS`.

    Raises:
        MachineError: from any method of the team, when another process ended or does not answer.
    """
    if launched_processes() == 1:
        yield Team()
        return
    if os.environ.get("OMP_NUM_THREADS") == "1":
        torch.set_num_threads(max(1, available_cores() // launched_here()))
    with _together():
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=STEP_SECONDS))
    team = _Launched(step_seconds)
    if not team.leads:
        logging.getLogger("unet_med").setLevel(logging.ERROR)  # what all would say, one says
    try:
        yield team
        team.gather(None)  # when one ends with an exit code, torchrun ends those that are still writing
    finally:
        team.leave()


@contextmanager
def _together() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise MachineError(
            "another process of this training ended or does not answer",
            remedy="its own message says why; then start the same command again with --resume",
        ) from error


def shares_by_size(sizes: Sequence[float], world: int, first: Sequence[int] = ()) -> list[list[int]]:
    """Returns the indices of the items that each of ``world`` processes works on, each in rising order.

    Args:
        sizes: How much work each item is.
        world: Number of processes.
        first: Items that the first process must have.
    """
    load = [0.0] * world
    shares: list[list[int]] = [[] for _ in range(world)]
    for item in sorted(range(len(sizes)), key=lambda item: (item not in first, -sizes[item])):
        rank = 0 if item in first else load.index(min(load))
        load[rank] += sizes[item]
        shares[rank].append(item)
    return [sorted(share) for share in shares]


def available_cores() -> int:
    """Returns the number of cores that this process may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1
