"""A token bucket."""

from xenlb.untrusted.rate import TokenBucket


def test_burst_rate_and_wait_of_a_bucket() -> None:
    rate = TokenBucket(2, 4.0)
    assert [rate.take(10.0) for _ in range(3)] == [True, True, False]
    assert rate.wait(10.0) == 0.25
    assert not rate.idle(10.0)
    assert rate.take(10.25)
    assert not rate.take(10.3)
    assert rate.wait(20.0) == 0.0
    assert rate.idle(20.0)
    assert [rate.take(1000.0) for _ in range(3)] == [True, True, False], "no more than the burst"
