"""Which block of the KV cache holds what, and for whom.

A block holds the keys and values of `size` tokens that follow each other. Here are
numbers of blocks only; what is in them is in `memory`.
"""

from collections.abc import Callable
from dataclasses import dataclass


class OutOfBlocks(RuntimeError):
    """No block is free."""


class BlockAllocator:
    """Hands out blocks and counts who refers to each.

    number: of blocks, numbered from 0. size: tokens in each.
    """

    def __init__(self, number: int, size: int):
        if number < 1 or size < 1:
            raise ValueError(f"number and size must be positive: {number}, {size}")
        self.number, self.size = number, size
        self._free = list(range(number))[::-1]
        self._references = [0] * number

    @property
    def free(self) -> int:
        """How many blocks nobody refers to."""
        return len(self._free)

    def references(self, block: int) -> int:
        return self._references[block]

    def take(self) -> int:
        """A free block, with one reference. Raises OutOfBlocks."""
        if not self._free:
            raise OutOfBlocks(f"all {self.number} blocks are in use")
        block = self._free.pop()
        self._references[block] = 1
        return block

    def share(self, block: int) -> None:
        """One reference more, to a block that has some."""
        if not self._references[block]:
            raise ValueError(f"block {block} is free: take it first")
        self._references[block] += 1

    def give_back(self, block: int) -> None:
        """One reference less; without any the block is free."""
        if not self._references[block]:
            raise ValueError(f"block {block} is free already")
        self._references[block] -= 1
        if not self._references[block]:
            self._free.append(block)

    def needed(self, tokens: int) -> int:
        """How many blocks hold so many tokens."""
        return -(-tokens // self.size)


@dataclass(eq=False)
class Entry:
    """A full block that can be found again: its tokens, behind those of `parent`.

    Two entries are equal only if they are the same one, so `parent` names one text.
    """

    block: int
    tokens: tuple[int, ...]
    parent: "Entry | None"
    key: int


class PrefixCache:
    """Finds blocks whose keys and values are those of a text's beginning.

    A block is found by the hash of its tokens and of its parent's key. A hash may lie,
    so tokens and parent are compared. The cache holds one reference to each block that
    it knows; a block to which nobody else refers is cached: it can be found, or freed
    by `evict`.
    """

    def __init__(self, allocator: BlockAllocator, hash: Callable[[object], int] = hash):
        self.allocator, self._hash = allocator, hash
        # By key, the least recently used first.
        self.entries: dict[int, Entry] = {}

    @property
    def cached(self) -> int:
        """How many blocks only the cache refers to."""
        return sum(self.unused(entry) for entry in self.entries.values())

    @property
    def blocks(self) -> list[int]:
        """The blocks that the cache knows."""
        return [entry.block for entry in self.entries.values()]

    def match(self, ids: list[int]) -> list[Entry]:
        """The longest known beginning of ids, in whole blocks; refers to each of them.

        Never all of ids: the logits of the last token have to be computed.
        """
        size, found = self.allocator.size, []
        for start in range(0, (len(ids) - 1) // size * size, size):
            parent = found[-1] if found else None
            entry = self.find(parent, tuple(ids[start : start + size]))
            if entry is None:
                break
            self.allocator.share(entry.block)
            found.append(entry)
        self.touch(found)
        return found

    def register(
        self, parent: Entry | None, tokens: tuple[int, ...], block: int
    ) -> Entry:
        """Make a full block known, after its keys and values have been written.

        Returns its entry, or that of another block which holds the same. One of
        another text with the same hash makes room.
        """
        if (same := self.find(parent, tokens)) is not None:
            return same
        entry = Entry(block, tokens, parent, self.key(parent, tokens))
        if (other := self.entries.get(entry.key)) is not None:
            self.forget(other)
        self.allocator.share(block)
        self.entries[entry.key] = entry
        return entry

    def touch(self, chain: list[Entry]) -> None:
        """These were used just now. The end of a text makes room before its beginning,
        without which it cannot be found."""
        for entry in reversed(chain):
            if self.entries.get(entry.key) is entry:
                self.entries[entry.key] = self.entries.pop(entry.key)

    def evict(self) -> bool:
        """Free the block that was not used for the longest time. False: there is none
        to which nobody else refers."""
        for entry in self.entries.values():
            if self.unused(entry):
                self.forget(entry)
                return True
        return False

    def key(self, parent: Entry | None, tokens: tuple[int, ...]) -> int:
        """The hash of these tokens behind all those before."""
        return self._hash((None if parent is None else parent.key, tokens))

    def find(self, parent: Entry | None, tokens: tuple[int, ...]) -> Entry | None:
        """The entry of these tokens behind those of parent."""
        entry = self.entries.get(self.key(parent, tokens))
        if entry is None or entry.tokens != tokens or entry.parent is not parent:
            return None
        return entry

    def unused(self, entry: Entry) -> bool:
        """Whether only the cache refers to the block."""
        return self.allocator.references(entry.block) == 1

    def forget(self, entry: Entry) -> None:
        """Give back the cache's reference."""
        del self.entries[entry.key]
        self.allocator.give_back(entry.block)
