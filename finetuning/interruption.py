"""Signals become "stop after this step", agreed by all processes."""

import os
import signal
import sys
from types import FrameType

import torch
from accelerate import Accelerator

from finetuning.errors import EXIT_KILLED_BY_USER

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Interruption:
    """Remembers SIGTERM, SIGINT and SIGUSR1. A second Ctrl-C leaves at once.

    Make it before anything that takes long, so that a signal during start-up isn't lost.
    """

    def __init__(self) -> None:
        self.signal_name = ""
        self._group: torch.distributed.ProcessGroup | None = None
        for number in _SIGNALS:
            signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal_name == "SIGINT":
            os._exit(EXIT_KILLED_BY_USER)
        if not self.signal_name and os.environ.get("RANK", "0") == "0":
            os.write(
                sys.stderr.fileno(), b"\nStopping after this step; a second Ctrl-C stops at once.\n"
            )  # print may be in use
        self.signal_name = signal.Signals(number).name

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any process got a signal. To be called by all processes together, after each step.

        The processes talk over a group of their own on the CPU: asking the accelerator would make the host wait for it.
        """
        if accelerator.num_processes == 1:
            return bool(self.signal_name)
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        anyone = torch.tensor(int(bool(self.signal_name)))
        torch.distributed.all_reduce(anyone, torch.distributed.ReduceOp.MAX, group=self._group)
        return bool(anyone.item())
