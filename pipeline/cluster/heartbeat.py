"""Who of several processes is still alive: each beats in a store, the first one looks and says who is gone, the others listen."""

import json
import os
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, NoReturn

import torch.distributed as dist

if TYPE_CHECKING:
    from pipeline.cluster.processes import Processes

INTERVAL = 0.5       # seconds
GRACE = 5.0   # seconds in which the others notice that one has ended


class Heartbeat(threading.Thread):
    """Beats for this process. In the first it also looks after the others and says who is gone; the others listen to it."""

    def __init__(self, group: "Processes", patience: float):
        super().__init__(daemon=True)
        self.group, self.patience, self.ended = group, patience, threading.Event()
        place = group.place
        self.store = dist.TCPStore(place.host, place.port, None, False, timeout=timedelta(seconds=patience),
                                   wait_for_workers=False)
        self.last = {rank: (-1, time.monotonic()) for rank in range(group.size)}   # rank -> beats so far, when they changed
        self.ending: float | None = None    # when another one ended as it was asked to

    def run(self) -> None:
        group = self.group
        while not self.ended.wait(INTERVAL):
            try:
                self.store.add(f"beat/{group.rank}", 1)
                if group.asked is not None and not self.store.check(["stop"]):
                    self.store.set("stop", str(int(group.asked)))
                elif group.asked is None and self.store.check(["stop"]):
                    group.asked = int(self.store.get("stop"))
                verdict = self._look() if group.is_main else self._listen()
            except RuntimeError:   # the store has gone, and with it who keeps it
                verdict = {"rank": 0, "code": 1, "why": "has gone"}
            if verdict and not self.ended.is_set():
                self._end(verdict)

    def _look(self) -> dict | None:
        """Whether one of the others has ended or died."""
        now, others = time.monotonic(), range(1, self.group.size)
        for rank in others:
            if self.store.check([f"end/{rank}"]):
                end = json.loads(self.store.get(f"end/{rank}"))
                stopped = end["code"] > 128
                if stopped:
                    self.group.asked = self.group.asked or end["code"] - 128
                self.ending = self.ending or now
                if now - self.ending < (self.patience if stopped else 2.0):   # mostly this process ends for the same reason
                    continue
                return {"rank": rank, **end}
        for rank in others:
            beats = self.store.add(f"beat/{rank}", 0)
            if self.store.check([f"parted/{rank}"]) or beats != self.last[rank][0]:
                self.last[rank] = beats, now
            member = self.group.members[rank]
            if member.host == os.uname().nodename and not member.is_alive() and not self.store.check([f"parted/{rank}"]):
                return {"rank": rank, "code": 1, "why": "has died"}
            if now - self.last[rank][1] > self.patience:
                return {"rank": rank, "code": 1, "why": f"has not been heard of for {self.patience:.0f} seconds"}
        return None

    def _listen(self) -> dict | None:
        """What the first process says, or that it is gone."""
        if self.store.check(["verdict"]):
            return json.loads(self.store.get("verdict"))
        beats, now = self.store.add("beat/0", 0), time.monotonic()
        if beats != self.last[0][0]:
            self.last[0] = beats, now
        if now - self.last[0][1] > self.patience:
            return {"rank": 0, "code": 1, "why": f"has not been heard of for {self.patience:.0f} seconds"}
        return None

    def _end(self, verdict: dict) -> None:
        """End this process because another one has ended."""
        group, rank = self.group, verdict["rank"]
        if verdict["why"] and (group.is_main or rank == 0):
            print(f"error: {group.name(rank)}: {verdict['why']}. The others stop; the same command continues", file=sys.stderr,
                  flush=True)
        if group.is_main:
            self.say(verdict)
        self.ended.set()
        self.part(GRACE)
        end_process(verdict["code"])

    def say(self, verdict: dict) -> None:
        """Tell all others why they must end."""
        try:
            self.store.set("verdict", json.dumps(verdict))
        except RuntimeError:
            pass

    def tell(self, code: int, why: str) -> None:
        """Tell the first process that this one ends, and print it here where nobody listens."""
        try:
            if code > 128:
                self.store.set("stop", str(code - 128))
            self.store.set(f"end/{self.group.rank}", json.dumps({"code": code, "why": why}))
            end = time.monotonic() + GRACE
            while time.monotonic() < end and not self.store.check(["verdict"]):
                time.sleep(INTERVAL)
            heard = self.store.check(["verdict"])
        except RuntimeError:
            heard = False
        if why and not heard:
            print(f"error: {self.group.name(self.group.rank)}: {why}", file=sys.stderr, flush=True)

    def part(self, patience: float | None) -> None:
        """Leave the store; the first process, which may keep it, goes last."""
        try:
            self.store.set(f"parted/{self.group.rank}", "")
            end = time.monotonic() + (self.patience if patience is None else patience)
            while self.group.is_main and time.monotonic() < end:
                if self.store.check([f"parted/{rank}" for rank in range(self.group.size)]):
                    return
                time.sleep(0.05)
        except RuntimeError:
            pass


def end_process(code: int) -> NoReturn:
    """Without the interpreter's own end, in which gloo sometimes aborts."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
