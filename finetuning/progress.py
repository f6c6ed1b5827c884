"""How far long work is: a bar on a terminal, plain lines elsewhere, with a rate and the time to go."""

import sys
import time

from tqdm import tqdm

_SECONDS_BETWEEN_LINES = 10.0


class Progress:
    """Counts work done towards a total. Only the process that is given `enabled=True` says anything."""

    def __init__(self, total: int, unit: str, title: str, *, done: int = 0, enabled: bool = True) -> None:
        self.total, self._unit, self._title = total, unit, title
        self.done = self._done_at_start = done
        self._enabled = enabled
        self._started = self._last_line = time.monotonic()
        self._bar = None
        if enabled and sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, unit=unit, desc=title, dynamic_ncols=True, unit_scale=unit == "B", leave=False
            )

    def update(self, done: int, note: str = "") -> None:
        """Say that `done` of the total is done by now; `note` is what else there is to know."""
        step, self.done = done - self.done, done
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(step)
        elif self._enabled and time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            print(self._plain(note), file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """Print a line that stays, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif self._enabled:
            print(text, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _plain(self, note: str) -> str:
        rate = (self.done - self._done_at_start) / max(1e-9, time.monotonic() - self._started)
        to_go = duration((self.total - self.done) / rate) if rate else "?"
        share = 100 * self.done // max(1, self.total)
        line = f"{self._title}: {share}% ({self.done:,} of {self.total:,} {self._unit}), "
        line += f"{rate:,.1f} {self._unit}/s, {to_go} to go"
        return f"{line}, {note}" if note else line


def duration(seconds: float) -> str:
    """Seconds as 0:42, 12:07 or 3:05:59."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
