"""What every way to storage has that makes its requests with a `Retry`: a patient version, and an end."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

from shared.blob.core import Retry
from shared.errors import StorageError


class Retried(abc.ABC):
    @abc.abstractmethod
    def with_retry(self, retry: Retry) -> Self:
        """The same over the same connections (close only the original), whose requests are retried so."""

    @abc.abstractmethod
    async def close(self) -> None: ...

    def patient(self, report: Callable[[StorageError | None], None] | None = None) -> Self:
        """The same with requests that wait storage out: passing trouble is retried for ever, and so, slowly, is what an operator must
        mend. Everything else is raised at once.

        `report` hears of every error that is being retried, from the first on, and of the end of it; without it, refusals are logged.
        """
        return self.with_retry(Retry(deadline_s=math.inf, also_refused=True, report=report))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
