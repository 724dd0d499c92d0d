"""Several processes that do the steps of one run together.

What started them (torchrun, srun --kill-on-bad-exit) ends them all when one fails; nothing here watches over them.
"""

import json
import os
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from pipeline.cluster.distributed import GRACE, DistributedSettings, Place
from pipeline.runfolder.claims import Owner
from steps.runtime.context import Group, Stopped
from wsss.errors import BackendError, ConfigError, WsssError

PATIENCE = timedelta(days=1)   # one process may still have many images to make when the others have none


class Processes(Group):
    """This process in a group of several. Raises WsssError when the others do not come (`distributed.start`)."""

    def __init__(self, place: Place, settings: DistributedSettings):
        self.rank, self.size, self.place = place.rank, place.size, place
        self.asked: int | None = None       # the signal by which this process was asked to stop
        self._fast: dist.ProcessGroup | None = None   # for CUDA tensors
        start = timedelta(seconds=settings.start)
        keeps = self.is_main and not place.launcher_keeps_store
        try:
            store = dist.TCPStore(place.host, place.port, None, keeps, timeout=start, wait_for_workers=False)
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)   # of each restart
            store.set(f"member/{self.rank}", json.dumps(asdict(Owner.me())))
            self.members = self._await_members(store, settings.start)
            dist.init_process_group("gloo", store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        except WsssError:
            raise
        except (RuntimeError, ValueError, OSError) as error:   # torch's DistError is a RuntimeError
            raise BackendError(f"process {self.rank} of {self.size} on {socket.gethostname()} did not meet the others at "
                               f"{place.host}:{place.port} ({str(error).splitlines()[0]}). Look at their messages; a port that "
                               "is taken is changed by MASTER_PORT, a slow start by distributed.start") from error

    def _await_members(self, store: dist.Store, patience: float) -> list[Owner]:
        names = [f"member/{rank}" for rank in range(self.size)]
        end = time.monotonic() + patience
        while not store.check(names):
            if time.monotonic() > end:
                missing = [rank for rank, name in enumerate(names) if not store.check([name])]
                raise BackendError(f"of {self.size} processes {self.size - len(missing)} came within distributed.start="
                                   f"{patience:g} seconds; missing: {', '.join(map(str, missing))}. See why they did not start")
            time.sleep(0.05)
        return [Owner(**json.loads(value)) for value in store.multi_get(names)]

    def name(self, rank: int) -> str:
        return f"process {rank} of {self.size} (pid {self.members[rank].pid} on {self.members[rank].host})"

    def choose_device(self, device: torch.device) -> torch.device:
        """The device of this process: on CUDA a GPU of its own.

        Raises ConfigError in every process, when two have the same GPU, or some have one and others none.
        """
        if device.type == "cuda":
            device = torch.device("cuda", self.place.local_rank % torch.cuda.device_count())
            torch.cuda.set_device(device)
        has = str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None
        all_have = self.all_gather(has)
        if len({one is None for one in all_have}) > 1:
            without = ", ".join(self.name(rank) for rank, one in enumerate(all_have) if one is None)
            raise ConfigError(f"device=auto: {without} sees no CUDA device, others do. Start as many processes on each machine "
                              "as it has GPUs, or set device=cpu")
        if has is not None and len(set(all_have)) < self.size:
            first, second = next((all_have.index(one), rank) for rank, one in enumerate(all_have) if all_have.index(one) != rank)
            raise ConfigError(f"{self.name(first)} and {self.name(second)} have the same GPU. Start at most as many processes on "
                              "a machine as it has GPUs")
        if has is not None:
            self._fast = dist.new_group(backend="nccl")   # its timeout: 10 minutes
        return device

    @property
    def here(self) -> int:
        """How many of the processes are on this machine."""
        return sum(member.host == self.members[self.rank].host for member in self.members)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self._together(lambda: dist.all_reduce(tensor, group=self._group_of(tensor)))
        return tensor

    def copy(self, tensor: torch.Tensor, source: int, target: int | None) -> torch.Tensor:
        group = self._group_of(tensor)
        if target is None:
            self._together(lambda: dist.broadcast(tensor, source, group))
        elif self.rank == source:
            self._together(lambda: dist.send(tensor, target, group))
        elif self.rank == target:
            self._together(lambda: dist.recv(tensor, source, group))
        return tensor

    def _group_of(self, tensor: torch.Tensor) -> dist.ProcessGroup | None:
        return self._fast if tensor.is_cuda else None

    def broadcast(self, make: Callable[[], Any]) -> Any:
        content = json.dumps(make()).encode() if self.is_main else b""
        length = torch.tensor(len(content))
        self._together(lambda: dist.broadcast(length, src=0))
        box = _bytes_tensor(content, int(length))
        self._together(lambda: dist.broadcast(box, src=0))
        return json.loads(box.numpy().tobytes())

    def all_gather(self, value: Any) -> list[Any]:
        content = json.dumps(value).encode()
        lengths = [torch.tensor(0) for _ in range(self.size)]
        self._together(lambda: dist.all_gather(lengths, torch.tensor(len(content))))
        longest = int(max(lengths))
        boxes = [_bytes_tensor(b"", longest) for _ in range(self.size)]
        self._together(lambda: dist.all_gather(boxes, _bytes_tensor(content, longest)))
        return [json.loads(box.numpy()[:length].tobytes()) for box, length in zip(boxes, lengths)]

    def _together(self, exchange: Callable[[], Any]) -> None:
        """Exchange with processes. If one of them has ended, the launcher usually asks this one to stop."""
        try:
            exchange()
        except RuntimeError as error:
            end = time.monotonic() + GRACE
            while self.asked is None and time.monotonic() < end:
                time.sleep(0.1)
            if self.asked is not None:
                raise Stopped from error
            raise WsssError(f"another process has ended or hangs ({str(error).splitlines()[0]}); its own output, or that of "
                            "torchrun or srun, says why. The same command continues") from error

    def leave(self, code: int, why: str = "") -> NoReturn:
        """End this process with the exit code `code`. `why` is its error, which no console has printed yet.

        Skips the interpreter's own exit, in which gloo sometimes aborts.
        """
        if why and code < 128:
            time.sleep(GRACE)   # usually rank 0 fails for the same reason and prints it, and the launcher ends this process
            print(f"error: {self.name(self.rank)}: {why}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _bytes_tensor(content: bytes, length: int) -> torch.Tensor:
    """`content` as uint8, filled with zeros up to `length`."""
    return torch.frombuffer(bytearray(content.ljust(length, b"\0")), dtype=torch.uint8)
