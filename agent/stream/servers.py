"""Which process server the next session is with, where a machine may have several. Pure: the clock is handed in.

The first is preferred. With whom there is no good session for `PATIENCE_S`, the next one is tried, and so on, round and round; whoever has
the session keeps it. While that is not the first, it is asked every `BACK_S` whether the first answers (`sender`); if so, the session
ends and the next one is with it. A session is good when it was open for `STEADY_S`: one that is given up as soon as it began (a full
cache, a certificate that is out of date) is as none.

**Never two sessions at once** (I7). There is one sender, and it closes its link before it makes the next; to ask whether a server answers
is a TLS connection without HELLO, and no session begins but by HELLO. So to the servers, a machine that moves is one that lost a
connection and made another, to the next. Whose the log is then, and what becomes of batches that lie at the one that it left, is decided
there (process_server/spool/ownership.py). What that one had acknowledged and not listed is in the ring still, or was freed because the
ring was half full; then the histories do not fit, and a new epoch begins with its reason (`sender.why_not`).

**What is wanted may change** while the stream is with another than the first; and the agent may be restarted. So the next session is with
whom the last one was, where he is named still (`AgentState.last_server`): the way to the first is the one above.

**Who is named no more is left when the next one could go on with the epoch**, and no sooner, as far as waiting helps: while something that
the ring does not hold any more may lie with him alone, he has the session, as if he were the last of those that are named, and is asked
to upload (`sender`). Who he is, how far the ring was freed, and what is in storage, stands in the pinned state; it is asked whenever the
stream begins. So it is one whether a wish, agent.toml or both came in between, whether the agent or that server was restarted meanwhile,
and whether the disks change, too: that ends the epoch, so there is nothing to wait for. He is not come back to.

**Who is refused as a copy of the machine stays.** Whether it is one is found by the server that has the machine's session; another one,
which has not, might take the copy for the machine.

**A first one that answers, and has no session for the machine** (its cache is full), is gone back to less and less often: each return in
vain doubles the wait, up to `BACK_LIMIT` times.

Waits are drawn anew each time, so that the machines of a site do not all move at once.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final

Address = tuple[str, int]

PATIENCE_S: Final = 30.0
BACK_S: Final = 600.0
STEADY_S: Final = 30.0
BACK_LIMIT: Final = 64
_JITTER: Final = 1.2


class ProcessServers:
    def __init__(
        self,
        addresses: Sequence[Address],
        now: float,
        former: Address | None = None,
        left: Address | None = None,
    ) -> None:
        """`addresses`: the one to be preferred first; none: nobody was named. `now`: monotonic, as everywhere here. `former`: with whom
        the stream was before; if he is still one of them he is stayed with, until the first has been asked, at once. `left`: who is none of
        them, and alone has what the epoch needs."""
        self._left: Final = left if addresses else None
        self._addresses = (*addresses, *([self._left] if self._left else []))
        former = self._left or former
        self._at = self._addresses.index(former) if former in self._addresses else 0
        self._patience_s = self._back_s = 0.0
        self._times = 1
        """How many times `BACK_S` is waited…"""
        self._is_return = False
        """…and whether the first one is the current one because it was gone back to, with no good session since."""
        self._vain_since = now
        """Since when there was no good session with the current one."""
        self._asked_at = now
        """When the first one was left, or asked last."""
        self._draw()
        if self.is_elsewhere:
            self._asked_at = now - self._back_s

    @property
    def current(self) -> Address | None:
        """With whom the next session is; None: nobody was named."""
        return self._addresses[self._at] if self._addresses else None

    @property
    def first(self) -> Address | None:
        return self._addresses[0] if self._addresses else None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the current one is not the one to be preferred."""
        return self._at != 0

    @property
    def is_leaving(self) -> bool:
        """Whether the current one is named no more."""
        return self._left is not None and self.current == self._left

    def ended(self, now: float, *, open_s: float) -> bool:
        """A session, or a try, failed; it was open for so long. Returns whether another server is the current one now."""
        if open_s >= STEADY_S:
            self._vain_since = now
            if self._at == 0:
                self._times, self._is_return = 1, False
        if len(self._addresses) < 2 or now - self._vain_since < self._patience_s:
            return False
        if self._is_return:
            self._times, self._is_return = min(2 * self._times, BACK_LIMIT), False
        self._go_to((self._at + 1) % len(self._addresses), now)
        return True

    def ask_first_in_s(self, now: float) -> float:
        """How long until the first is to be asked whether it answers."""
        return max(0.0, self._asked_at + self._back_s - now)

    def first_is_away(self, now: float) -> None:
        """It was asked, and does not answer."""
        self._asked_at = now
        self._draw()

    def go_back(self, now: float) -> None:
        """To the first, which answers, or to which the stream is to go."""
        is_return = not self.is_leaving
        self._go_to(0, now)
        self._is_return = is_return

    def _go_to(self, at: int, now: float) -> None:
        if self._at == 0:
            self._asked_at = now
        if self.is_leaving:
            self._addresses = self._addresses[:-1]
        self._at, self._vain_since = at, now
        self._draw()

    def _draw(self) -> None:
        self._patience_s = PATIENCE_S * random.uniform(1.0, _JITTER)
        self._back_s = self._times * BACK_S * random.uniform(1.0, _JITTER)
