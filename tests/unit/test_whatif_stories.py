"""What-if on stories whose answer is known: two models in turn, a second GPU, a queue for one slot."""

from __future__ import annotations

from functools import partial

from daemon.history.changes import Changes, with_digests_of
from daemon.history.compare import Column, fidelity
from daemon.history.parts import DOWN, DRAIN, LOAD, PARTS, QUEUED, SERVED, TURN, UNLOAD
from daemon.history.whatif_notes import notes
from events import catalogue as c
from events.limits import GIB, S
from statemachines.parts import Runner
from statemachines.simulator import Life, World
from tests.simulation.again import LOAD_NS, SERVED_NS, Plain, in_turn, play, record, story


def loads(column: Column) -> tuple[int, int]:
    return column.stats.total.loads["decided"], column.stats.total.swaps


def test_two_models_in_turn_with_room_for_one_and_for_both() -> None:
    """Every request waits for a stop and a load; with room for both only the first of each does."""
    recording, recorded = record(story(in_turn(16)))
    assert loads(recorded) == (16, 15)
    baseline = play(recording)
    assert (baseline.waited_ns, baseline.outcomes) == (recorded.waited_ns, recorded.outcomes)
    roomy = play(recording, Changes(budgets_bytes={"gpu0": 24 * GIB}), {"gpu0": 24 * GIB})
    assert loads(roomy) == (2, 0)
    assert roomy.outcomes == ["completed"] * 16
    assert list(roomy.waited_ns[2:]) == [0] * 14
    assert all(baseline.parts_ns[part] > 0 for part in (UNLOAD, LOAD))
    assert all(roomy.parts_ns[part] == 0 for part in (DRAIN, UNLOAD, TURN, QUEUED))
    assert roomy.parts_ns[LOAD] == 2 * LOAD_NS
    assert roomy.parts_ns[SERVED] == baseline.parts_ns[SERVED] == 16 * SERVED_NS


def test_a_second_gpu_helps_whoever_may_go_there() -> None:
    added = Changes(budgets_bytes={"gpu1": 12 * GIB})
    free, _ = record(story(in_turn(10), device=""))
    assert loads(play(free, added, dict(added.budgets_bytes))) == (2, 0)
    bound, _ = record(story(in_turn(10)))
    assert loads(play(bound, added, dict(added.budgets_bytes))) == (10, 9)
    said = notes(
        bound, added, [each.fact.view for each in bound.inputs if isinstance(each.fact, c.ConfigChanged)]
    )
    assert any("configured for other devices than gpu1: blue, red" in text for text in said)


def test_a_queue_for_one_slot_and_for_four() -> None:
    recording, recorded = record(story([(20, "blue")] * 4))
    assert [ns // S for ns in recorded.waited_ns] == [10, 12, 14, 16]
    wide = play(recording, Changes(slots={"blue": 4}))
    assert [ns // S for ns in wide.waited_ns] == [10] * 4
    assert wide.parts_ns[QUEUED] == 0 < recorded.parts_ns[QUEUED]


def test_slots_of_what_is_loaded_already() -> None:
    """From the middle of a log on, what is there has the slots of the configuration that is asked about."""
    log = story([(20, "blue"), *[(100, "blue")] * 3])
    middle = max(event.seq for event in log if event.t < 50 * S)
    recording, recorded = record(log, after=middle)
    assert [ns // S for ns in recorded.waited_ns] == [0, 2, 4]
    assert [ns // S for ns in play(recording, Changes(slots={"*": 3})).waited_ns] == [0, 0, 0]


def test_keep_alive() -> None:
    log = story([(20, "blue"), (200, "blue")], keep_alive_ns=60 * S)
    recording, recorded = record(log)
    assert loads(recorded) == (2, 0)
    assert recorded.stats.total.evictions == {"keep_alive": 2}
    assert loads(play(recording, Changes(keep_alive_ns={"blue": 300 * S}))) == (1, 0)
    assert loads(play(recording, Changes(keep_alive_ns={"blue": c.NEVER}))) == (1, 0)


def test_who_was_never_served_takes_as_long_as_others() -> None:
    """With room for one, who wants the other model waits in vain; with room for both it is served, for a time
    that is not its own, which is said."""
    busy = [(30 + 2 * i, "blue") for i in range(10)]
    recording, recorded = record(story([(20, "blue"), *busy, (31, "red")], queue_ns=12 * S))
    assert (recorded.count("timed_out"), recorded.outcomes[2]) == (1, "timed_out")
    wide = play(recording, Changes(budgets_bytes={"gpu0": 24 * GIB}), {"gpu0": 24 * GIB})
    assert wide.outcomes == ["completed"] * 12
    assert wide.parts_ns[SERVED] == 12 * SERVED_NS
    assert recording.substitutes.never_served == 1
    assert any("never served" in text for text in notes(recording, Changes(), []))


def test_a_request_that_was_cut_off_would_have_taken_longer() -> None:
    world = World(Plain(), {"gpu0": 12 * GIB})
    world.start()
    models = {"blue": c.ModelView("blue", memory_bytes={"gpu0": 10 * GIB})}
    world.submit(c.ConfigChanged(c.ConfigView(models)))
    world.at(S, partial(world.submit, c.RequestArrived("blue", "chat")))
    world.at(12 * S, lambda: world.submit(c.ClientGone(next(iter(world.state.requests)))))
    world.at(20 * S, partial(world.submit, c.RequestArrived("blue", "chat")))
    world.run(60 * S)
    recording, recorded = record(world.log)
    assert recorded.outcomes == ["cancelled", "completed"]
    assert recording.substitutes.cut_off == 1
    assert play(recording).outcomes == recorded.outcomes
    (exchange,) = recording.exchanges[recording.arrivals[0].id]
    assert exchange.ns == SERVED_NS > 12 * S - (S + LOAD_NS)


def test_a_restart_ends_what_is_served_then() -> None:
    world = World(Plain(), {"gpu0": 24 * GIB})
    world.start()
    models = {name: c.ModelView(name, memory_bytes={"gpu0": 10 * GIB}) for name in ("blue", "red")}
    world.submit(c.ConfigChanged(c.ConfigView(models)))
    for t, name in ((1, "blue"), (12, "blue"), (40, "blue")):
        world.at(t * S, partial(world.submit, c.RequestArrived(name, "chat")))
    world.at(13 * S, partial(world.restart, 5 * S))
    world.run(120 * S)
    recording, recorded = record(world.log)
    assert recorded.outcomes == ["interrupted", "interrupted", "completed"]
    assert recorded.parts_ns[DOWN] == 2 * 6 * S, "from the second arrival on, the last that is known"
    assert recorded.parts_ns[SERVED] == S + SERVED_NS
    assert sorted(recorded.stats.total.waits_ns) == sorted(recorded.waited_ns) == [0, 0, LOAD_NS]
    again = play(recording)
    assert (again.outcomes, again.waited_ns) == (recorded.outcomes, recorded.waited_ns)
    assert loads(again) == (1, 0), "it outlives the daemon, as it did"
    assert any("started again once" in text for text in notes(recording, Changes(), []))


def test_a_runner_that_crashed_crashes_again() -> None:
    class Frail(Plain):
        def life(self, world: World, runner: Runner) -> Life:
            life = super().life(world, runner)
            life.exit_ns = 25 * S if len(world.lives) == 0 else -1
            return life

    world = World(Frail(), {"gpu0": 24 * GIB})
    world.start()
    world.submit(
        c.ConfigChanged(c.ConfigView({"blue": c.ModelView("blue", memory_bytes={"gpu0": 10 * GIB})}))
    )
    for t in (1, 12, 25, 60):
        world.at(t * S, partial(world.submit, c.RequestArrived("blue", "chat")))
    world.run(120 * S)
    recording, recorded = record(world.log)
    again = play(recording)
    assert recorded.stats.total.loads["decided"] == 2
    assert (again.outcomes, again.waited_ns) == (recorded.outcomes, recorded.waited_ns)
    assert fidelity(recorded, again).share == 1.0
    assert any("crashed" in text for text in notes(recording, Changes(), []))


def test_another_file_whose_digests_cannot_be_compared() -> None:
    recorded = c.ConfigView({"blue": c.ModelView("d1"), "red": c.ModelView("d2")})
    other = c.ConfigView({"blue": c.ModelView("x1", slots=3), "green": c.ModelView("x2")})
    view = with_digests_of(other, recorded)
    assert view.models == {"blue": c.ModelView("d1", slots=3), "green": c.ModelView("x2")}
    recording, _ = record(story(in_turn(4)))
    views = [each.fact.view for each in recording.inputs if isinstance(each.fact, c.ConfigChanged)]
    changes = Changes(view=view)
    again = play(recording, changes)
    assert again.outcomes.count("rejected") == 2, "red is not in it"
    said = notes(recording, changes, views)
    assert any("not in that file, so refused: red" in text for text in said)
    assert any("another command than recorded" in text and "blue" in text for text in said)


def test_changes_change_what_they_say() -> None:
    view = c.ConfigView(
        {"a": c.ModelView("d"), "b": c.ModelView("e", slots=2)}, {"gpu0": c.DeviceView(GIB, True)}
    )
    assert Changes()(view) is view
    changed = Changes(policy="fifo", max_loaded=3, slots={"*": 5, "b": 7}, keep_alive_ns={"a": S})(view)
    assert (changed.policy, changed.max_loaded) == ("fifo", 3)
    assert changed.models == {"a": c.ModelView("d", slots=5, keep_alive_ns=S), "b": c.ModelView("e", slots=7)}
    assert Changes(budgets_bytes={"gpu1": GIB, "host": GIB})(view).devices == {
        "gpu0": c.DeviceView(GIB, True), "gpu1": c.DeviceView(GIB, True), "host": c.DeviceView(GIB, False),
    }  # fmt: skip
    assert Changes(view=changed)(view) == changed
    assert len(PARTS) == 10
