import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from wattd.history import History
from wattd.ledger import Ledger

_STEPS = st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 10**9)), min_size=2, max_size=30)
_CLAIMS = st.lists(
    st.tuples(st.sampled_from(["x", "y", "z"]), st.integers(0, 20_000), st.integers(0, 10_000)), max_size=8
)


def _history(*readings: tuple[int, int]) -> History:
    history = History()
    for nano, microjoules in readings:
        history.append(nano, microjoules)
    return history


@settings(deadline=None)
@given(_STEPS, _CLAIMS, st.lists(st.integers(1, 25_000), max_size=6))
def test_jobs_and_idle_and_unattributed_are_the_counter_exactly(
    steps: list[tuple[int, int]], claims: list[tuple[str, int, int]], looks: list[int]
) -> None:
    """Whatever jobs overlap and whenever one looks: not a microjoule is lost or made up."""
    history, ledger = History(), Ledger()
    nano = energy = 0
    for elapsed, used in steps:
        nano, energy = nano + elapsed, energy + used
        history.append(nano, energy)
    for key, (job_id, begin, length) in enumerate(claims):
        ledger.claim(key, job_id, ["d"], begin)
        if length % 3:
            ledger.release(key, begin + length)
    shown: list[dict[str, int]] = []
    for look in [*sorted(looks), nano]:
        ledger.advance("d", history, look)
        account = ledger.accounts["d"]
        shown.append({**account.jobs, "idle": account.idle, "unattributed": account.unattributed})
        assert sum(shown[-1].values()) == account.total_microjoules
    first = history.at(history.first_nano)
    assert first is not None
    assert ledger.accounts["d"].total_microjoules == energy - first
    for earlier, later in itertools.pairwise(shown):
        assert all(later[name] >= value for name, value in earlier.items())


def test_an_interval_is_shared_out_by_time() -> None:
    """A job that begins within an update gets the part of its energy that lies in it."""
    ledger = Ledger()
    ledger.claim("a", "job", ["d"], 1_250)
    ledger.advance("d", _history((1_000, 0), (2_000, 4_000)), 2_000)
    account = ledger.accounts["d"]
    assert (account.idle, account.jobs) == (1_000, {"job": 3_000})


def test_what_two_jobs_had_at_once_is_nobodys() -> None:
    """Nobody can tell who used it; two ranks of one job are one job."""
    ledger = Ledger()
    ledger.claim("a", "one", ["d"], 1)
    ledger.claim("b", "one", ["d"], 1)
    ledger.claim("c", "two", ["d"], 1_500)
    ledger.advance("d", _history((1_000, 0), (2_000, 4_000)), 2_000)
    account = ledger.accounts["d"]
    assert (account.jobs, account.unattributed, account.idle) == ({"one": 2_000}, 2_000, 0)


def test_a_claim_that_is_renewed_changes_its_devices() -> None:
    """GPUs that become known later count from then on; the others are given back."""
    ledger, history = Ledger(), _history((1_000, 0), (2_000, 4_000))
    ledger.claim("a", "job", ["d", "e"], 1_000)
    ledger.claim("a", "job", ["e"], 1_500)
    for device in "de":
        ledger.advance(device, history, 2_000)
    assert ledger.accounts["d"].jobs == {"job": 2_000}
    assert ledger.accounts["d"].idle == 2_000
    assert ledger.accounts["e"].jobs == {"job": 4_000}


def test_a_late_claim_takes_nothing_that_was_divided() -> None:
    """Counters never go down."""
    ledger, history = Ledger(), _history((1_000, 0), (2_000, 4_000))
    ledger.advance("d", history, 1_500)
    ledger.claim("a", "job", ["d"], 1_000)
    ledger.advance("d", history, 2_000)
    assert (ledger.accounts["d"].idle, ledger.accounts["d"].jobs) == (2_000, {"job": 2_000})
