"""Runs, their ranks and phases, jobs and clients: what the state of the daemon is made of."""

from dataclasses import dataclass, field

PHASES_PER_JOB = 16
"""Names of phases a job has in the metrics; what comes later is counted as `other`."""

OTHER_PHASE = "other"


@dataclass(slots=True)
class OpenPhase:
    """A phase whose begin is known and whose end is not."""

    run_id: str
    rank: int
    phase: str
    thread: int
    begin_nano: int


@dataclass(slots=True)
class Rank:
    """One rank of a run on this node.

    Attributes:
        end_nano: None while it is open.
        restarts: Times it began again under the same run_id.
    """

    client: str
    local_rank: int
    gpu_uuids: list[str]
    begin_nano: int
    end_nano: int | None = None
    restarts: int = 0


@dataclass(slots=True)
class Run:
    """A run with its ranks on this node; `boot_id` is set if it ran in another boot."""

    run_id: str
    name: str
    job_id: str
    tokens_phase: str
    begin_nano: int
    boot_id: str = ""
    ranks: dict[int, Rank] = field(default_factory=dict)

    @property
    def is_open(self) -> bool:
        """Some rank has not ended."""
        return any(rank.end_nano is None for rank in self.ranks.values())

    @property
    def lowest_rank(self) -> int:
        """The rank whose phases cut what all ranks share: the lowest local one."""
        return min(self.ranks, key=lambda number: (self.ranks[number].local_rank, number))


@dataclass(slots=True)
class PhaseTotal:
    """Exact sums of a phase name over a job; `tokens` is None until some instance told them."""

    instances: int = 0
    nanoseconds: int = 0
    tokens: int | None = None


@dataclass(slots=True)
class Job:
    """A job: of a scheduler, or a run outside any (`local-...`).

    Attributes:
        end_nano: When its last run ended; None while one is open.
        phases: Sums by phase name, at most PHASES_PER_JOB and `other`.
    """

    job_id: str
    user: str
    account: str
    partition: str
    end_nano: int | None = None
    phases: dict[str, PhaseTotal] = field(default_factory=dict)

    def name_of(self, phase: str) -> str:
        """The name under which a phase is counted."""
        return phase if phase in self.phases or len(self.phases) < PHASES_PER_JOB else OTHER_PHASE

    def total(self, phase: str) -> PhaseTotal:
        """Where a phase is counted."""
        name = self.name_of(phase)
        found = self.phases.get(name)
        if found is None:
            found = self.phases[name] = PhaseTotal()
        return found


@dataclass(slots=True)
class Client:
    """A process that sends marks.

    Attributes:
        sequence: The last of its marks that was taken.
        nano: The latest time in its marks.
        boot_id: Set if its marks are of another boot.
        renamed: Runs that got another id: proposed -> given.
        ranks: Its rank by run_id.
        phases: Its open phases by their number.
        closed: Numbers of phases that the daemon closed for it.
    """

    sequence: int = 0
    nano: int = 0
    boot_id: str = ""
    renamed: dict[str, str] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    phases: dict[int, OpenPhase] = field(default_factory=dict)
    closed: list[int] = field(default_factory=list)
