"""When a node stops its agents, and when it may take others for dead."""

from steadyhand.queue.procrastinate.lease import CUT_OFF_SECONDS, DEAD_SECONDS, WRITE_SECONDS, Lease


def old_lease() -> Lease:
    """Return the lease of a node that has written it from 0 to 100 s."""
    lease = Lease(0.0)
    for at in range(0, 101, 2):
        lease.note_written(float(at), at + 0.01)
    return lease


def test_a_node_that_writes_its_lease_is_not_cut_off_and_judges_after_a_while() -> None:
    lease = Lease(100.0)
    assert not lease.may_judge(100.0)
    now = 100.0
    while now < 100.0 + DEAD_SECONDS:
        lease.note_written(now, now + 0.01)
        now += WRITE_SECONDS
    assert not lease.is_cut_off(now)
    assert lease.may_judge(now)


def test_a_node_whose_writes_pass_their_time_limit_stops_its_agents_before_others_act() -> None:
    lease = Lease(100.0)
    lease.note_written(110.0, 110.01)
    for at in (112.0, 114.0, 116.0):
        lease.note_failed(at, refused=False)
    assert not lease.is_cut_off(110.0 + CUT_OFF_SECONDS - 0.01)
    assert lease.is_cut_off(110.0 + CUT_OFF_SECONDS)
    assert CUT_OFF_SECONDS + WRITE_SECONDS < DEAD_SECONDS


def test_an_outage_in_which_the_host_refuses_connections_stops_no_agent() -> None:
    lease = Lease(100.0)
    for at in range(102, 160, 2):
        lease.note_failed(float(at), refused=True)
    assert not lease.is_cut_off(160.0)


def test_a_node_judges_nobody_for_a_while_after_an_outage() -> None:
    lease = old_lease()
    assert lease.may_judge(100.0)
    lease.note_failed(102.0, refused=True)
    lease.note_written(104.0, 104.01)
    assert not lease.may_judge(104.0)
    assert not lease.may_judge(102.0 + DEAD_SECONDS - 0.01)
    assert lease.may_judge(102.0 + DEAD_SECONDS)


def test_a_write_that_waited_out_an_outage_counts_as_one_as_does_a_freeze_of_the_node() -> None:
    lease = old_lease()
    lease.note_written(102.0, 145.0)
    assert not lease.may_judge(145.0 + DEAD_SECONDS - 0.01)
    assert lease.may_judge(145.0 + DEAD_SECONDS)
    assert lease.is_cut_off(146.0), "the write began long ago: others count from its begin"
