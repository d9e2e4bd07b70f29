"""``bench/measure/cache.py``: replays, their limits, and what it prints."""

import itertools
import random
import sys

import pytest

from q4run.bench.measure import cache
from q4run.bench.measure.cache import count_hits, main, measure, optimal_hits
from q4run.bench.models.traces import Pass, Trace, in_chunks, made_trace
from q4run.experts.policies import POLICIES
from q4run.experts.trace import TraceWriter


def trace_of(n_expert: int, *passes: list[list[int]]) -> Trace:
    n_layers = len(passes[0])
    layers = list(range(n_layers))
    whole = [Pass(1, experts) for experts in passes]
    return Trace("by hand", layers, [n_expert] * n_layers, [1] * n_layers, whole)


def random_trace(seed: int, n_layers: int, n_expert: int, n_passes: int) -> Trace:
    rng = random.Random(seed)
    return trace_of(
        n_expert,
        *(
            [sorted(rng.sample(range(n_expert), rng.randint(1, n_expert))) for _ in range(n_layers)]
            for _ in range(n_passes)
        ),
    )


def hits(trace: Trace, name: str, n_slots: int, in_flight: int = 1) -> int:
    policy = POLICIES[name](len(trace.layers), max(trace.n_expert))
    return count_hits(trace, policy, n_slots, in_flight)


def most_hits_of_all_choices(trace: Trace, n_slots: int) -> int:
    """Every way to keep some of what was there and what was wanted, tried."""
    best = {frozenset(): 0}
    for one in trace.passes:
        for layer, experts in enumerate(one.experts):
            wanted = {(layer, expert) for expert in experts}
            after: dict[frozenset, int] = {}
            for kept, n_hits in best.items():
                found = n_hits + len(kept & wanted)
                at_hand = sorted(kept | wanted)
                for size in range(min(n_slots, len(at_hand)) + 1):
                    for choice in map(frozenset, itertools.combinations(at_hand, size)):
                        after[choice] = max(after.get(choice, 0), found)
            best = after
    return max(best.values())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("n_slots", [1, 2, 3])
def test_the_optimum_is_that_of_all_choices(seed, n_slots):
    trace = random_trace(seed, 2, 3, 6)
    assert optimal_hits(trace, n_slots) == most_hits_of_all_choices(trace, n_slots)


@pytest.mark.parametrize("name", POLICIES)
def test_no_policy_beats_the_optimum(name):
    for seed in range(60):
        n_layers, n_expert = 1 + seed % 3, 2 + seed % 5
        trace = random_trace(seed, n_layers, n_expert, 30)
        for n_slots in (1, 3, n_layers * n_expert):
            most = optimal_hits(trace, n_slots)
            for in_flight in (1, 3):
                assert hits(trace, name, n_slots, in_flight) <= most


@pytest.mark.parametrize("name", POLICIES)
def test_where_all_fit_an_expert_misses_once(name):
    trace = made_trace(2, 4, 2, 50)
    n_wanted = 2 * 2 * 50
    assert hits(trace, name, 8) == n_wanted - 8 == optimal_hits(trace, 8)


@pytest.mark.parametrize("name", POLICIES)
def test_any_number_of_experts_runs_through_one_slot(name):
    trace = trace_of(4, [[0, 1, 2, 3], [0, 1, 2]], [[0, 1, 2, 3], [2]])
    assert hits(trace, name, 1, in_flight=4) <= 1


def test_lru_by_hand():
    trace = trace_of(3, [[0]], [[1]], [[0]], [[2]], [[0]], [[1]], [[2]])
    # In the two slots: 0, 0 1, 1 0 (hit), 0 2, 2 0 (hit), 0 1, 1 2.
    assert hits(trace, "lru", 2) == 2
    assert optimal_hits(trace, 2) == 3  # 1 passes through, and 2 is kept


def test_a_cyclic_walk_leaves_lru_nothing_and_layers_a_fixed_part():
    passes = [[[0, 1, 2, 3]] * 5] * 40
    trace = trace_of(4, *passes)
    n_slots = 10
    assert hits(trace, "lru", n_slots) == 0
    # All but the slot that is read into; the first pass finds nothing.
    assert hits(trace, "layers", n_slots) >= 39 * (n_slots - 1)
    assert optimal_hits(trace, n_slots) == 39 * n_slots


def test_below_one_token_lru_misses_every_repeat():
    trace = trace_of(4, *[[[1]] * 6] * 20)
    assert hits(trace, "lru", 5) == 0
    assert hits(trace, "layers", 5) >= 19 * 4


def test_more_reads_in_flight_push_out_what_is_kept():
    trace = in_chunks(made_trace(4, 8, 1, 800), 100)
    few, many = (hits(trace, "layers", 12, in_flight) for in_flight in (1, 8))
    assert few > many


def test_policies_are_worth_their_place():
    """On the traces that they were chosen for; the margins are about half of what was measured."""
    even = made_trace(6, 16, 1, 1500)
    skewed = made_trace(4, 32, 4, 400, skew=1.0, reuse=0.3)
    for trace, n_slots in ((even, 24), (skewed, 32)):
        n_wanted = sum(trace.n_used) * len(trace.passes)
        gain = hits(trace, "layers", n_slots) - hits(trace, "lru", n_slots)
        assert gain > 0.005 * n_wanted


def test_results_add_up():
    trace = made_trace(3, 8, 2, 100)
    results = measure(trace, [0.25, 1.0], in_flight=4)
    assert [(one.policy, one.n_slots) for one in results[:4]] == [
        ("layers", 6),
        ("lru", 6),
        (cache.OPTIMAL, 6),
        (cache.EVEN, 6),
    ]
    for one in results:
        assert one.misses_per_token == pytest.approx(6 * (1 - one.hit_rate))
    assert results[3].hit_rate == 0.25
    assert results[-1].hit_rate == 1.0
    assert {one.misses_per_token for one in results[4:7]} == {24 / 100}


@pytest.fixture
def trace_file(tmp_path):
    path = tmp_path / "small.trace"
    writer = TraceWriter(path, [1], [4], [1])
    for expert in (0, 1, 0, 1):
        writer.begin_pass(1)
        writer.layer(1, [expert])
    writer.close()
    return path


def test_the_table(trace_file, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    main([str(trace_file), "--budgets", "0.5", "--expert-mb", "500", "--disk-gb-s", "1", "2"])
    out = capsys.readouterr().out
    assert "small.trace: 4 tokens" in out
    assert "one token wants 1, 0.50 GB" in out
    (row,) = (line for line in out.splitlines() if "lru" in line)
    # Two of four hit; 0.25 GB per token, so 4 tokens a second at 1 GB/s.
    cells = [cell.strip() for cell in row.strip(" │|").split("│")]
    assert cells == ["50 %", "1.00", "lru", "50.0 %", "0.250", "4.00", "8.00"]


def test_chunks_on_the_command_line(trace_file, capsys):
    main([str(trace_file), "--budgets", "1", "--chunk", "2"])
    assert "up to 2 a pass" in capsys.readouterr().out


def test_a_plot(trace_file, tmp_path):
    pytest.importorskip("matplotlib", reason="in the [bench] extra")
    picture = tmp_path / "hits.png"
    main([str(trace_file), "--plot", str(picture)])
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_one_clear_line(trace_file, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit, match=r"^error: --plot needs matplotlib: .*$"):
        main([str(trace_file), "--plot", "hits.png"])


def test_a_trace_that_is_not_there_is_one_clear_line(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*none.trace: cannot be read: .*$"):
        main([str(tmp_path / "none.trace")])


@pytest.mark.parametrize(
    "words",
    [
        ("--budgets", "0"),
        ("--budgets", "1.5"),
        ("--budgets", "nan"),
        ("--disk-gb-s", "-1"),
        ("--expert-mb", "much"),
        ("--chunk", "0"),
        ("--in-flight", "1.5"),
    ],
)
def test_numbers_out_of_range(words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(list(words))
    assert caught.value.code == 2
    assert f"argument {words[0]}: {words[1]}: not a" in capsys.readouterr().err
