"""How a step goes on where members live in several processes: two small collectives, tensors only.

(1) Every member's keys [B, k], from which each process makes the same union. (2) Every member's column of scores over
its slots, [B, U]. Each process then combines them in member order, so that all come to the same bits, and nobody has to
be told what was chosen. What only one process knows, such as a gate's decision or the seconds of a round, is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..exchange import Exchange
from ..members.rank_group import RankGroup
from .evaluation import MemberOutOfMemory


class RankExchange(Exchange):
    """The exchange between the processes of a group.

    Every process calls the same methods in the same order. A member's lack of memory travels beside the keys.

    Parameters
    ----------
    group : RankGroup
    holders : sequence of int
        Per member its rank.
    """

    def __init__(self, group: RankGroup, holders: Sequence[int]) -> None:
        self._group = group
        self._holders = list(holders)
        self._own = [m for m, holder in enumerate(holders) if holder == group.rank]
        counts = [0] * group.size
        self._places: list[int] = []  # of every member among those of its rank
        for holder in holders:
            self._places.append(counts[holder])
            counts[holder] += 1
        self._most = max(counts)
        self._lack = 0  # 1 + a member of this process that has run out of memory
        self._cause: Exception | None = None
        self._flags: Tensor | None = None

    def holds(self, member: int) -> bool:
        """See `Exchange.holds`. Not one that has just run out of memory, either."""
        return member in self._own and self._lack != member + 1

    def keys(self, keys: Tensor) -> Tensor:
        """See `Exchange.keys`."""
        found = self._fill(keys.transpose(0, 1), flagged=True)
        return found.transpose(0, 1).contiguous()

    def columns(self, columns: Tensor) -> Tensor:
        """See `Exchange.columns`."""
        return self._fill(columns.permute(2, 0, 1)).permute(1, 2, 0).contiguous()

    def log_probs(self, log_probs: Tensor) -> Tensor:
        """See `Exchange.log_probs`."""
        return self._fill(log_probs.transpose(0, 1)).transpose(0, 1).contiguous()

    def figures(self, figures: Sequence[int]) -> list[int]:
        """See `Exchange.figures`."""
        return self._fill(torch.tensor(list(figures), dtype=torch.int64, device="cpu")).tolist()

    def told(self, member: int, shape: Sequence[int], dtype: torch.dtype, compute: Callable[[], Tensor]) -> Tensor:
        """See `Exchange.told`. On the CPU.

        Raises
        ------
        MemberOutOfMemory
            The member is out of memory.
        """
        values = compute().to("cpu", dtype) if self.holds(member) else torch.zeros(*shape, dtype=dtype, device="cpu")
        packed = torch.cat([self._flag(dtype, torch.device("cpu")), values.reshape(-1)])
        packed = self._group.share(packed, self._holders[member])
        self._flags = packed[:1]
        self.check()
        return packed[1:].reshape(*shape)

    def agreed(self, answers: Sequence[bool]) -> list[bool]:
        """See `Exchange.agreed`.

        Raises
        ------
        MemberOutOfMemory
            A member is out of memory.
        """
        cpu = torch.device("cpu")
        packed = torch.cat([self._flag(torch.int64, cpu), torch.tensor(list(answers), dtype=torch.int64, device="cpu")])
        found = self._group.gather(packed)
        self._flags = found[:, 0]
        self.check()
        return found[:, 1:].all(dim=0).tolist()

    def lacks(self, member: int, error: Exception) -> None:
        """See `Exchange.lacks`."""
        self._lack = self._lack or member + 1
        self._cause = self._cause or error

    def check(self) -> None:
        """See `Exchange.check`. Waits for the device where the keys are there."""
        if self._flags is None:
            return
        lacking = int(self._flags.max())
        self._flags = None
        if lacking:
            cause, self._lack, self._cause = self._cause, 0, None
            raise MemberOutOfMemory(lacking - 1) from cause

    def _flag(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full((1,), self._lack, dtype=dtype, device=device)

    def _fill(self, parts: Tensor, *, flagged: bool = False) -> Tensor:
        """All members' parts, [M, ...], from those with this process's own filled in."""
        rest = parts.shape[1:]
        own = parts.new_zeros((self._most, *rest))
        for place, m in enumerate(self._own):
            own[place] = parts[m]
        sent = own.reshape(-1)
        if flagged:
            sent = torch.cat([self._flag(parts.dtype, parts.device), sent])
        found = self._group.gather(sent)
        if flagged:
            self._flags, found = found[:, 0], found[:, 1:]
        found = found.reshape(self._group.size, self._most, *rest)
        return torch.stack([found[holder, place] for holder, place in zip(self._holders, self._places)])
