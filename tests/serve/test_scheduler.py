"""Whose turn it is: fair between tenants and forewords, in order within both, nothing starved."""

from foreword.serve.scheduler import Scheduler, Verdict


def run(queue: Scheduler, places: int) -> list:
    """Start `places` rows and return them in the order of their starts."""
    started = []

    def offer(row):
        if len(started) == places:
            return Verdict.FULL
        started.append(row)
        return Verdict.STARTED

    assert queue.start(offer) == len(started)
    return started


def filled(*flows: tuple[str, str, int, int]) -> Scheduler:
    """Return a queue with `count` rows of `cost` for each (tenant, foreword, count, cost)."""
    queue = Scheduler()
    for tenant, foreword, count, cost in flows:
        for number in range(count):
            queue.push((tenant, foreword, number), cost, tenant, foreword)
    return queue


def test_a_flood_of_one_tenant_delays_another_by_one_row_only():
    started = run(filled(("loud", "x", 100, 10), ("quiet", "y", 2, 10)), 4)
    assert [row[0] for row in started].count("quiet") == 2


def test_tenants_share_tokens_not_requests():
    started = run(filled(("long", "x", 50, 90), ("short", "y", 200, 10)), 40)
    tokens = {name: sum(cost for row in started if row[0] == name) for name, cost in (("long", 90), ("short", 10))}
    assert abs(tokens["long"] - tokens["short"]) <= 90


def test_forewords_of_one_tenant_take_turns():
    started = run(filled(("t", "a", 30, 5), ("t", "b", 30, 5), ("t", "c", 1, 5)), 9)
    assert [row[1] for row in started[:3]] != ["a"] * 3
    assert [row[1] for row in started].count("c") == 1
    assert [row[1] for row in started].count("a") == [row[1] for row in started].count("b") == 4


def test_the_order_within_a_flow_is_priority_then_arrival():
    queue = filled(("t", "a", 3, 5))
    queue.push("urgent", 5, "t", "a", priority=1)
    assert run(queue, 9) == ["urgent", ("t", "a", 0), ("t", "a", 1), ("t", "a", 2)]
    assert len(queue) == queue.tokens == 0


def test_who_was_away_has_saved_nothing_up():
    queue = filled(("steady", "x", 100, 10), ("back", "y", 1, 10))
    run(queue, 50)
    for number in range(60):
        queue.push(("back", "y", 100 + number), 10, "back", "y")
    started = [row[0] for row in run(queue, 20)]
    assert 9 <= started.count("back") <= 11


def test_a_foreword_that_is_not_there_is_passed_over_and_a_full_engine_ends_the_round():
    queue, offered = filled(("t", "cold", 5, 5), ("t", "warm", 2, 5)), []

    def offer(row):
        offered.append(row)
        return Verdict.LATER if row[1] == "cold" else Verdict.STARTED

    assert queue.start(offer) == 2
    assert [row[1] for row in offered].count("cold") == 1
    assert len(queue) == 5
    assert queue.start(lambda row: Verdict.FULL) == 0
    assert len(queue) == 5


def test_rows_that_leave_are_not_offered_and_counts_stay_true():
    queue = filled(("t", "a", 4, 5))
    assert queue.remove(("t", "a", 1)) and not queue.remove(("t", "a", 1))
    assert (len(queue), queue.rows_of("t"), queue.tokens) == (3, 3, 15)
    assert queue.start(lambda row: Verdict.REMOVED) == 0
    assert (len(queue), queue.rows_of("t"), queue.tokens) == (0, 0, 0)


def test_names_ever_seen_are_forgotten():
    queue = Scheduler()
    for number in range(500):
        queue.push(number, 1, f"tenant-{number}", "x")
        run(queue, 1)
    assert len(queue._tenants) <= 1
