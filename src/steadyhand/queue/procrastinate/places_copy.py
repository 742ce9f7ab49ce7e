"""A node's copy of all places, for reads that do not wait."""

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain

from steadyhand.queue.procrastinate.place import Place, PlaceState, SortKey


class PlacesCopy:
    """All places as the node knows them, those that wait in their order.

    `is_unclaimed` returns True for a running place whose claim nobody has taken yet: for its readers it waits.
    """

    def __init__(self, is_unclaimed: Callable[[Place], bool]) -> None:
        self._is_unclaimed = is_unclaimed
        self._change = 0
        self._later: set[int] = set()
        self._places: dict[str, Place] = {}
        self._waiting: list[SortKey] = []
        self._waiting_keys: dict[str, SortKey] = {}

    def get(self, job_id: str) -> Place | None:
        """Return a job's place or None."""
        return self._places.get(job_id)

    def has(self, change: int) -> bool:
        """Return True if it contains a change of this number."""
        return change <= self._change or change in self._later

    def is_behind(self, change: int) -> bool:
        """Return True if it has missed a change up to this one."""
        return change > self._change

    def note(self, change: int) -> None:
        """Note that it contains a change."""
        self._later.add(change)
        while self._change + 1 in self._later:
            self._change += 1
            self._later.remove(self._change)

    def apply(self, changes: Mapping[str, Place | None]) -> None:
        """Replace these places; None is one that is gone."""
        for job_id, place in changes.items():
            if place is None:
                self._places.pop(job_id, None)
            else:
                self._places[job_id] = place
            self.refresh(job_id)

    def refresh(self, job_id: str) -> None:
        """Look again whether a job waits, after its claim was taken."""
        old = self._waiting_keys.pop(job_id, None)
        if old is not None:
            del self._waiting[bisect_left(self._waiting, old)]
        place = self._places.get(job_id)
        if place is not None and (place.waits or self._is_unclaimed(place)):
            self._waiting_keys[job_id] = place.sort_key
            insort(self._waiting, place.sort_key)

    def replace_all(self, change: int, places: Iterable[Place]) -> None:
        """Begin anew with all places as of a change."""
        self._change = max(self._change, change)
        self._later = {later for later in self._later if later > self._change}
        self._places.clear()
        self._waiting.clear()
        self._waiting_keys.clear()
        self.apply({place.job_id: place for place in places})

    def position(self, job_id: str) -> int | None:
        """Return the position of a job that waits, 1 for the next one, or None."""
        sort_key = self._waiting_keys.get(job_id)
        return None if sort_key is None else bisect_left(self._waiting, sort_key) + 1

    @property
    def waiting_count(self) -> int:
        """The number of jobs that wait."""
        return len(self._waiting)

    def waiting(self) -> Iterator[Place]:
        """Yield the places that wait, the next first."""
        return (self._places[sort_key[-1]] for sort_key in self._waiting)

    def running_elsewhere(self, node: str) -> Iterator[Place]:
        """Yield the places that run on other nodes."""
        return (
            place
            for place in chain(self._places.values())
            if place.state is PlaceState.RUNNING and place.node != node
        )

    def suspended_elsewhere(self, node: str, key_id: str) -> int:
        """Return the number of a key's runs that wait for their client on other nodes."""
        return sum(
            place.state is PlaceState.SUSPENDED and place.node != node and place.key_id == key_id
            for place in self._places.values()
        )

    def of_node(self, node: str) -> Iterator[Place]:
        """Yield the places that were chosen for a node or run there."""
        return (
            place
            for place in self._places.values()
            if place.node == node and place.state in {PlaceState.READY, PlaceState.RUNNING}
        )
