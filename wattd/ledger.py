"""Who used the energy: each device's counter divided among jobs, idle and what is several jobs' at once.

All in whole microjoules, so that for each device jobs + idle + unattributed is its counter, exactly.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from wattd.history import History


@dataclass(slots=True)
class Claim:
    """A job uses a device from one moment to another; `end_nano` is None while it does."""

    key: Hashable
    job_id: str
    begin_nano: int
    end_nano: int | None = None


@dataclass(slots=True)
class Account:
    """A device's energy since the server began, microjoules.

    Attributes:
        jobs: Used while one job alone had the device, by job.
        idle: Used while no job had it.
        unattributed: Used while several jobs had it.
        counted_nano: Up to when it is divided.
        counted_microjoules: The device's counter then.
        total_microjoules: What has been divided.
    """

    jobs: dict[str, int] = field(default_factory=dict)
    idle: int = 0
    unattributed: int = 0
    counted_nano: int = 0
    counted_microjoules: int = 0
    total_microjoules: int = 0
    claims: list[Claim] = field(default_factory=list)

    def add(self, owners: set[str], microjoules: int) -> None:
        """Count energy that a set of jobs shares."""
        self.total_microjoules += microjoules
        if not owners:
            self.idle += microjoules
        elif len(owners) > 1:
            self.unattributed += microjoules
        else:
            (job_id,) = owners
            self.jobs[job_id] = self.jobs.get(job_id, 0) + microjoules


class Ledger:
    """The accounts of a node's devices.

    Attributes:
        accounts: By device name.
    """

    def __init__(self) -> None:
        self.accounts: dict[str, Account] = {}
        self._claimed: dict[Hashable, list[tuple[str, Claim]]] = {}

    def claim(self, key: Hashable, job_id: str, devices: Iterable[str], begin_nano: int) -> None:
        """A job begins to use devices.

        Args:
            key: Names the claim until it is released; several claims of one job on a device count once.
            job_id: The job.
            devices: Names of devices.
            begin_nano: Since when; what has been divided already stays as it is.
        """
        self.release(key, begin_nano)
        claims = self._claimed[key] = []
        for device in devices:
            claim = Claim(key, job_id, begin_nano)
            self._account(device).claims.append(claim)
            claims.append((device, claim))

    def is_claimed(self, key: Hashable) -> bool:
        """A claim of that name is open."""
        return key in self._claimed

    def release(self, key: Hashable, end_nano: int) -> None:
        """A claim ends; one that is not known is passed over."""
        for _, claim in self._claimed.pop(key, ()):
            claim.end_nano = end_nano

    def _account(self, device: str) -> Account:
        return self.accounts.setdefault(device, Account())

    def advance(self, device: str, history: History, until_nano: int) -> None:
        """Divide a device's energy up to a moment, or up to its newest reading if that is earlier.

        The energy between two readings is shared out by time.
        """
        account = self._account(device)
        until_nano = min(until_nano, history.last_nano)
        if not account.counted_nano:
            energy = history.at(history.first_nano)
            if energy is None or until_nano < history.first_nano:
                return
            account.counted_nano, account.counted_microjoules = history.first_nano, energy
        if until_nano <= account.counted_nano:
            return
        cuts = {until_nano}
        for claim in account.claims:
            cuts.add(claim.begin_nano)
            cuts.add(claim.end_nano or until_nano)
        for cut in sorted(cut for cut in cuts if account.counted_nano < cut <= until_nano):
            energy = history.at(cut)
            if energy is None:
                continue  # the history does not reach back so far: the piece joins the next one
            owners = {
                claim.job_id
                for claim in account.claims
                if claim.begin_nano <= account.counted_nano
                and (claim.end_nano is None or claim.end_nano >= cut)
            }
            account.add(owners, energy - account.counted_microjoules)
            account.counted_nano, account.counted_microjoules = cut, energy
        account.claims = [
            claim
            for claim in account.claims
            if claim.end_nano is None or claim.end_nano > account.counted_nano
        ]

    def forget(self, job_id: str) -> None:
        """An ended job needs no account any more; what it used stays in the totals."""
        for account in self.accounts.values():
            account.jobs.pop(job_id, None)
