"""Planning: the arithmetic by hand, budgets beside each other, measuring and what is refused."""

import json
import os
import time
from dataclasses import replace

import pytest
from gguf import GGMLQuantizationType
from helpers.commands import assert_one_error_line, command, invoke
from helpers.tiny_checkpoints import make_checkpoint

import q4run
from q4run.bench.models.synthetic import write_model
from q4run.budget import INTERPRETER_ALLOWANCE, default_budget
from q4run.cli import plan_report
from q4run.cli.known_shapes import ShapeFacts
from q4run.convert import convert
from q4run.convert.preview import preview_checkpoint, preview_geometry
from q4run.convert.types.recipe import make_recipe
from q4run.errors import BudgetError, Error
from q4run.experts.layout import read_layout
from q4run.gguf_file import describe_file, open_gguf
from q4run.kernels.formats import find_format, find_format_named
from q4run.machine.load import Load
from q4run.models import FAMILIES, read_config
from q4run.models.published import GEOMETRIES
from q4run.models.shapes import Geometry
from q4run.planning import machine_speed
from q4run.planning.advice import Planner, Ram, make_planner
from q4run.planning.attention_speed import AttentionSpeed, measure_attention
from q4run.planning.forecast import LAYER_S, Limit
from q4run.planning.kernel_speed import KernelSpeed, measure_kernels
from q4run.planning.machine_speed import Given, MachineSpeed, find_speeds
from q4run.planning.work import count_work

GB = 10**9
Q4_0 = 18 / 32
# Nothing of this is measured.
GIVEN = Given(threads=8, memory=100 * GB, disk=4 * GB, core=200 * GB)
MACHINE = ["--threads", 8, "--memory-bandwidth", "100G", "--disk", "4G", "--core-speed", "200G"]
FAST = KernelSpeed(
    memory=50 * GB, core=40 * GB, region_s=2e-5, prompt=100 * GB, unpack_s=3e-11, fill=5 * GB,
    fill_s=1e-4, first_fill=2 * GB,
)  # fmt: skip
ATTENTION = AttentionSpeed(decode=30 * GB, prompt=20 * GB)
SMALL = Geometry(n_layers=3, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_vocab=512)


def described(name="scout", type_name="q4_0", geometry=None):
    recipe = make_recipe(type_name, None, None, ())
    return preview_geometry(name, geometry or GEOMETRIES[name], recipe)


ROOMY = Ram(64 * GB, 56 * GB)


def planner_of(file, machine=None, ram=ROOMY, context=4096, n_prompt=512) -> Planner:
    config = read_config(file)
    layout = read_layout(file, config)
    work = count_work(file, config, layout, "f16")
    machine = machine or MachineSpeed(8, 100 * GB, 4 * GB, {"q4_0": FAST, "q6_k": FAST}, ATTENTION)
    return Planner(
        file, config, layout, machine, ram, work=work, context=context, n_prompt=n_prompt
    )


@pytest.fixture(scope="module")
def model_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "small.gguf"
    write_model(path, SMALL, "q4_0")
    return path


# What a token takes


def test_scouts_sizes_in_q4_0_are_the_known_ones():
    work = planner_of(described()).work
    expert = 3 * 5120 * 8192
    assert expert * Q4_0 == 70_778_880
    assert work.cold_bytes == 48 * 70_778_880  # 3.40 GB
    assert [layer.n_expert for layer in work.experts] == [16] * 48
    attention, shared = 48 * (2 * 5120 * 5120 + 2 * 5120 * 1024), 48 * expert
    router = 48 * 16 * 5120
    assert work.dense["q4_0"] == (attention + shared) * Q4_0
    assert work.dense["q6_k"] == 202048 * 5120 * 210 / 256  # the output matrix, as convert does
    assert work.weight_bytes == sum(work.dense.values()) + work.cold_bytes
    assert work.prompt_weights == {"q4_0": attention + shared, "f32": router}
    assert work.main_types() == ["q4_0", "q6_k"]


@pytest.mark.parametrize(
    ("name", "type_name", "cold_gb", "n_experts"),
    [
        ("scout", "tq2_0", 1.557, 768),
        ("scout", "tq1_0", 1.274, 768),
        ("maverick", "q4_0", 1.699, 3072),
        ("maverick", "tq1_0", 0.637, 3072),
    ],
)
def test_cold_reads_of_known_models(name, type_name, cold_gb, n_experts):
    machine = MachineSpeed(8, 100 * GB, 4 * GB, {type_name: FAST}, ATTENTION)
    planner = planner_of(described(name, type_name), machine)
    assert planner.work.cold_bytes / GB == pytest.approx(cold_gb, abs=0.001)
    assert planner.rows()[0].memory.n_experts == n_experts


def test_behemoths_parameters_are_the_published_ones():
    tensors = described("behemoth", "f16").tensors.values()
    routed = sum(t.n_elements for t in tensors if "_exps" in t.name)
    total = sum(t.n_elements for t in tensors)
    table = 202048 * 16384
    assert 1.9e12 < total < 2.05e12
    assert total - routed * 15 / 16 - table == pytest.approx(288e9, rel=0.02)


def test_what_is_guessed_of_a_shape_is_said():
    words = ["plan", "--geometry", "behemoth", "--type", "tq1_0", "--ram", "1024G", *MACHINE]
    assert "not published" in " ".join(command(*words).stdout.split())
    assert "not published" in json.loads(command(*words, "--json").stdout)["note"]


def test_a_busy_machine_is_said_to_be_one(monkeypatch, capsys):
    planner = planner_of(described())
    planner.machine = replace(planner.machine, load=Load(0.6, 0.25))
    row = planner.row(24 * GB)
    plan_report.print_plan(planner, [row], row, "q4run chat", ShapeFacts())
    assert "took 60 % of the processor and 25 % of what the disk" in " ".join(
        capsys.readouterr().out.split()
    )


def test_the_best_is_good_at_prompts_too():
    # A prompt in small batches reads every expert again and again.
    planner = planner_of(described("maverick"), ram=Ram(16 * GB, 14 * GB))
    rows = planner.rows()
    best = planner.best(rows)
    as_fast = [r for r in rows if r.forecast.decode.tok_s >= 0.97 * best.forecast.decode.tok_s]
    allowed = [r for r in as_fast if r.budget <= default_budget(14 * GB)]
    assert best.forecast.prompt.tok_s >= 0.97 * max(r.forecast.prompt.tok_s for r in allowed)
    assert best.memory.n_batch > min(r.memory.n_batch for r in allowed)


def test_attention_counts_pairs_inside_chunks_only():
    work = planner_of(described()).work
    width = 4 * 40 * 128
    assert work.attention_operations(1) == width * 48
    whole = 8192 * 8193 // 2
    two_chunks, everything = 2 * whole, 16384 * 16385 // 2
    assert work.attention_operations(16384) == width * (36 * two_chunks + 12 * everything)
    assert work.attention_operations(0) == 0


# The forecast


def test_decoding_by_hand():
    planner = planner_of(described())
    row = planner.row(24 * GB)
    decode, work = row.forecast.decode, planner.work
    missed = 1 - row.memory.n_slots / 768
    computed = work.weight_bytes / (50 * GB) + work.kv_bytes(512) / (30 * GB)
    computed += 48 * (LAYER_S + 4 * 2e-5)
    waited = 48 * missed * (70_778_880 / (4 * GB) + 1e-4)
    meanwhile = 48 * missed * 70_778_880 / (50 * GB)  # the shared experts
    assert decode.tok_s == pytest.approx(1 / (computed + waited - meanwhile))
    assert decode.read_bytes == round(missed * work.cold_bytes)
    assert decode.limit is Limit.DISK
    # A prompt of 512 tokens has filled the slots.
    assert row.forecast.cold_decode.tok_s == pytest.approx(decode.tok_s)
    assert row.forecast.cold_hit_rate == pytest.approx(row.forecast.hit_rate)
    assert row.forecast.long_decode.tok_s < decode.tok_s


def test_the_first_tokens_find_what_a_short_prompt_has_left_in_ram():
    planner = planner_of(described(), ram=Ram(96 * GB, 90 * GB), n_prompt=8)
    told = planner.row(70 * GB).forecast
    seen = 1 - (15 / 16) ** 8
    assert told.cold_hit_rate == pytest.approx(seen)
    assert told.cold_decode.read_bytes == pytest.approx((1 - seen) * planner.work.cold_bytes)
    assert told.cold_decode.limit is Limit.DISK
    assert (told.hit_rate, told.decode.read_bytes) == (1, 0)


def test_the_page_cache_has_what_a_first_prompt_has_read():
    roomy = Ram(128 * GB, 100 * GB)
    told = planner_of(described(), ram=roomy, n_prompt=8).row(24 * GB).forecast
    long_prompt = planner_of(described(), ram=roomy).row(24 * GB).forecast
    assert told.cached
    assert told.cold_decode.tok_s < long_prompt.cold_decode.tok_s
    assert long_prompt.cold_decode.tok_s == pytest.approx(told.decode.tok_s, rel=0.02)


def test_what_is_all_in_ram_waits_for_memory():
    row = planner_of(described(), ram=Ram(96 * GB, 90 * GB)).row(70 * GB)
    assert row.memory.all_resident
    assert row.forecast.hit_rate == 1
    assert row.forecast.decode.limit is Limit.MEMORY
    assert (row.forecast.decode.read_bytes, row.forecast.cached) == (0, False)


def test_what_the_page_cache_holds_waits_for_no_disk():
    row = planner_of(described(), ram=Ram(128 * GB, 100 * GB)).row(24 * GB)
    assert row.forecast.cached
    assert row.forecast.decode.tok_s > planner_of(described()).row(24 * GB).forecast.decode.tok_s
    assert row.forecast.decode.limit is not Limit.DISK


def test_a_disk_faster_than_the_cores_can_interleave():
    slow = replace(FAST, fill=0.1 * GB)
    machine = MachineSpeed(8, 100 * GB, 40 * GB, {"q4_0": slow}, ATTENTION)
    decode = planner_of(described(), machine).row(12 * GB).forecast.decode
    assert decode.limit is Limit.CORES
    slower_disk = MachineSpeed(8, 100 * GB, 0.8 * GB, {"q4_0": slow}, ATTENTION)
    assert planner_of(described(), slower_disk).row(12 * GB).forecast.decode.tok_s == (
        pytest.approx(decode.tok_s)
    )


def test_slow_cores_are_named():
    slow = replace(FAST, memory=8 * GB, core=GB, prompt=GB)
    machine = MachineSpeed(8, 100 * GB, 4 * GB, {"q4_0": slow}, ATTENTION)
    forecast = planner_of(described(), machine, Ram(96 * GB, 90 * GB)).row(70 * GB).forecast
    assert (forecast.decode.limit, forecast.prompt.limit) == (Limit.CORES, Limit.CORES)


def test_prompts_by_hand():
    planner = planner_of(described(), ram=Ram(96 * GB, 90 * GB))
    forecast = planner.row(70 * GB).forecast
    work = planner.work
    weights = work.prompt_weights["q4_0"] + work.prompt_weights["f32"] + 48 * 3 * 5120 * 8192
    unpacked = work.prompt_weights["q4_0"] + work.prompt_weights["f32"] + 768 * 3 * 5120 * 8192
    computing = 2 * weights * 512 / (8 * 100 * GB) + unpacked * 3e-11 / 8 + 48 * LAYER_S
    attending = work.attention_operations(512) / (8 * 20 * GB)
    assert forecast.prompt.tok_s == pytest.approx(512 / (computing + attending), rel=1e-3)
    assert forecast.prompt.limit is Limit.CORES
    assert forecast.cold_prompt.read_bytes == pytest.approx(16 * work.cold_bytes, rel=1e-6)
    assert forecast.cold_prompt.limit is Limit.CORES
    slow_disk = MachineSpeed(8, 100 * GB, GB, {"q4_0": FAST, "q6_k": FAST}, ATTENTION)
    cold = planner_of(described(), slow_disk).row(24 * GB).forecast.cold_prompt
    assert cold.limit is Limit.DISK
    assert cold.tok_s == pytest.approx(512 / (16 * work.cold_bytes / GB))


def test_a_context_of_one_token():
    row = planner_of(described(), context=1).row(24 * GB)
    assert row.forecast.n_prompt == 1
    assert row.forecast.prompt.tok_s > 0


def test_a_model_without_experts():
    tensors = described("small-scout").tensors.values()
    kept = [
        (t.name, t.shape, t.type)
        for t in tensors
        if "exp" not in t.name and "gate_inp" not in t.name
    ]
    ffn = [("gate", (3072, 2048)), ("up", (3072, 2048)), ("down", (2048, 3072))]
    q4_0 = find_format_named("q4_0").ggml_type
    kept += [(f"blk.{i}.ffn_{name}.weight", shape, q4_0) for i in range(12) for name, shape in ffn]
    keys = {
        "block_count": 12,
        "context_length": 2048,
        "embedding_length": 2048,
        "feed_forward_length": 3072,
        "attention.head_count": 16,
        "attention.head_count_kv": 4,
        "attention.key_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-5,
    }
    metadata = {f"llama.{key}": value for key, value in keys.items()}
    file = describe_file("dense.gguf", {"general.architecture": "llama"} | metadata, kept)
    rows = planner_of(file).rows()
    assert all(row.forecast.hit_rate == 1 and row.memory.n_experts == 0 for row in rows)
    assert all(row.forecast.decode.read_bytes == 0 for row in rows)


# Budgets


def test_rows_ascend_from_the_least_to_what_the_machine_has():
    planner = planner_of(described())
    rows = planner.rows(20 * GB)
    budgets = [row.budget for row in rows]
    assert budgets == sorted(set(budgets))
    assert 4 <= len(rows) <= 8
    assert 20 * GB in budgets
    assert budgets[0] >= planner.least > 0.97 * budgets[0]
    assert all(row.memory.total <= row.budget <= 64 * GB for row in rows)
    speeds = [row.forecast.decode.tok_s for row in rows]
    assert speeds == sorted(speeds)
    best = planner.best(rows)
    assert best.budget <= 0.75 * 56 * GB
    assert best.forecast.decode.tok_s >= 0.97 * max(
        row.forecast.decode.tok_s for row in rows if row.budget <= 0.75 * 56 * GB
    )


def test_where_all_fits_all_is_recommended():
    planner = planner_of(described(), ram=Ram(128 * GB, 100 * GB))
    rows = planner.rows()
    assert rows[-1].memory.all_resident
    assert planner.best(rows).memory.all_resident


@pytest.mark.parametrize("free", [0, 3 * GB])
def test_hardly_anything_free(free):
    planner = planner_of(described(), ram=Ram(16 * GB, free))
    rows = planner.rows()
    assert planner.best(rows) is rows[0]


def test_budgets_that_cannot_be():
    planner = planner_of(described(), ram=Ram(16 * GB, 12 * GB))
    with pytest.raises(BudgetError, match="needs at least"):
        planner.row(GB)
    with pytest.raises(BudgetError, match=r"more than the 16\.0 GB of RAM"):
        planner.row(10**18)
    with pytest.raises(BudgetError, match="--ram"):
        planner_of(described("behemoth"), ram=Ram(16 * GB, 12 * GB)).rows()


# The machine


def speeds_of(formats, given, **how) -> MachineSpeed:
    return find_speeds(read_config(described()), "f16", formats, (), given, **how)


def test_given_figures_measure_nothing(monkeypatch):
    monkeypatch.setattr(machine_speed, "read_limit", lambda threads: pytest.fail("measured"))
    for name in ("measure_kernels", "measure_attention"):
        monkeypatch.setattr(machine_speed, name, lambda *a: pytest.fail("measured"))
    formats = [find_format_named("q4_0"), find_format(GGMLQuantizationType.IQ1_S)]
    speeds = speeds_of(formats, GIVEN)
    assert (speeds.threads, speeds.memory, speeds.disk) == (8, 100 * GB, 4 * GB)
    q4_0 = speeds.kernels["q4_0"]
    assert q4_0.prompt == 200 * GB
    assert q4_0.core == pytest.approx(0.4 * 100 * GB * 4.5 / 8)
    assert q4_0.memory == pytest.approx(0.85 * 100 * GB)
    assert 0 < q4_0.first_fill < q4_0.fill
    assert 0 < speeds.attention.decode < 100 * GB
    assert 0 < speeds.attention.prompt < 200 * GB
    assert speeds.kernel("f32") == q4_0 or speeds.kernel("f32") == speeds.kernels["iq1_s"]


@pytest.fixture
def notes(monkeypatch, tmp_path, others):
    path = tmp_path / "cache" / "speeds.json"
    monkeypatch.setattr(machine_speed, "_NOTES", path)
    calls = []
    monkeypatch.setattr(machine_speed, "read_limit", lambda n: calls.append("memory") or 20e9)
    monkeypatch.setattr(
        machine_speed, "measure_kernels", lambda *a: calls.append("kernels") or FAST
    )
    monkeypatch.setattr(
        machine_speed, "measure_attention", lambda *a: calls.append("attention") or ATTENTION
    )
    return path, calls


def test_what_was_measured_is_remembered_for_a_day(notes, monkeypatch):
    _, calls = notes
    formats = [find_format_named("q4_0")]
    given = Given(disk=GB, threads=1)
    first = speeds_of(formats, given)
    assert calls == ["memory", "kernels", "attention"]
    assert speeds_of(formats, given) == first
    assert len(calls) == 3
    speeds_of(formats, given, anew=True)
    assert len(calls) == 6
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    speeds_of(formats, given)
    assert len(calls) == 9


@pytest.mark.parametrize("text", ["", "[]", "{", '{"memory 1": 3}', '{"memory 1": {"when": "x"}}'])
def test_damaged_notes_are_measured_again(notes, text):
    path, calls = notes
    path.parent.mkdir()
    path.write_text(text)
    speeds_of([find_format_named("q4_0")], Given(disk=GB, threads=1))
    assert len(calls) == 3
    assert set(json.loads(path.read_text()))


def test_other_memory_and_more_threads_than_here(notes):
    formats = [find_format_named("q4_0")]
    # Here: 20 GB/s, of which the kernels take all (50 of them measured: more than the limit).
    there = speeds_of(formats, Given(threads=2000, memory=400 * GB, disk=GB))
    assert there.kernels["q4_0"].memory == pytest.approx(400 * GB)
    assert there.attention.decode == pytest.approx(400 * GB)
    with pytest.raises(Error, match="2000 threads"):
        speeds_of(formats, Given(threads=2000, disk=GB))


def test_an_unwritable_cache_says_how_to_go_on(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(machine_speed, "_NOTES", tmp_path / "file" / "speeds.json")
    with pytest.raises(Error, match="--disk"):
        speeds_of([], Given(threads=1, memory=GB, core=GB))


@pytest.mark.parametrize("name", ["Q4_0", "F16", "IQ3_S"])
def test_kernels_are_measured(name, monkeypatch):
    monkeypatch.setattr("q4run.planning.kernel_speed._DECODE_BYTES", 8 << 20)
    monkeypatch.setattr("q4run.planning.kernel_speed._ROUNDS", 1)
    monkeypatch.setattr("q4run.planning.fill_speed._ROUNDS", 1)
    monkeypatch.setattr("q4run.planning.fill_speed._FILE_BYTES", 4 << 20)
    with machine_speed.ThreadPool(1) as pool:
        speed = measure_kernels(find_format(GGMLQuantizationType[name]), pool.state, 1)
    for figure in (speed.memory, speed.core):
        assert 1e5 < figure < 1e13
    # What filling costs is a difference: beside a busy program it may seem to be nothing.
    for figure in (speed.fill, speed.first_fill):
        assert 1e5 < figure < 1e17
    assert 0 <= speed.fill_s < 1
    assert 1e7 < speed.prompt < 1e14
    assert 0 <= speed.region_s < 1
    assert 0 <= speed.unpack_s < 1e-6


@pytest.mark.parametrize("kv_type", ["f16", "f32", "q8_0"])
def test_attention_is_measured(kv_type, monkeypatch):
    monkeypatch.setattr("q4run.planning.attention_speed._CACHED_BYTES", 1 << 20)
    part = read_config(described("small", geometry=SMALL)).layers[0].attention
    with machine_speed.ThreadPool(1) as pool:
        speed = measure_attention(part, kv_type, pool.state, 1)
    assert 1e5 < speed.decode < 1e13
    assert 1e6 < speed.prompt < 1e14


# Folders


def test_a_folder_is_planned_as_it_would_be_converted(tmp_path):
    folder = tmp_path / "checkpoint"
    make_checkpoint("llama4_quantisable", folder)
    preview = preview_checkpoint(folder, make_recipe("q8_0", "q4_0", None, ()))
    convert(folder, tmp_path / "out.gguf", type="q8_0", expert_type="q4_0")
    written = open_gguf(tmp_path / "out.gguf")
    assert {t.name: (t.shape, t.type, t.n_bytes) for t in preview.tensors.values()} == {
        t.name: (t.shape, t.type, t.n_bytes) for t in written.tensors.values()
    }
    assert abs(preview.size - written.size) <= 4096
    plans = [planner_of(file, ram=ROOMY, context=64).row(GB).memory for file in (preview, written)]
    assert plans[0] == plans[1]


def test_the_plan_is_what_a_model_takes(model_path):
    given = Given(threads=1, memory=GB, disk=GB, core=GB)
    planner = make_planner(
        open_gguf(model_path), given, paths=[model_path], context=64, kv_type="f16"
    )
    row = planner.row(4_000_000 + planner.least)
    with q4run.load(model_path, ram_budget=row.budget, context=64, threads=1) as model:
        assert model.plan == row.memory


# The command line


def test_json_of_a_geometry():
    done = command(
        "plan", "--geometry", "scout", "--type", "q4_0", "--ram", "48G", *MACHINE, "--json"
    )
    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["bytes_per_token"]["cold"] == 48 * 70_778_880
    assert plan["decode"]["limit"] == "disk"
    assert plan["prompt"]["tokens"] == 512
    assert plan["machine"]["disk"] == 4 * GB
    memory = plan["memory"]
    parts = ("dense", "tokenizer", "kv", "scratch", "slots")
    assert sum(memory[name] for name in parts) == memory["total"] <= plan["ram_budget"]
    assert memory["allowance"] == INTERPRETER_ALLOWANCE
    assert memory["total"] < memory["expected_peak"] < memory["total"] + INTERPRETER_ALLOWANCE
    assert memory["page_cache"] == 42 * GB - memory["total"] - INTERPRETER_ALLOWANCE
    assert memory["kv"] == 4096 * 4096 * 48
    assert [row["ram_budget"] for row in plan["budgets"]] == sorted(
        row["ram_budget"] for row in plan["budgets"]
    )
    assert plan["command"].startswith("q4run chat scout-q4_0.gguf --ram-budget ")
    again = command(
        "plan", "--geometry", "scout", "--type", "q4_0", "--ram", "48G", *MACHINE, "--json"
    )
    assert json.loads(again.stdout) == plan


def test_the_text_fits_80_columns_and_recommends_one_command(model_path):
    result = invoke("plan", model_path, *MACHINE, "--ram", "8G", "--context", 64)
    assert result.exit_code == 0
    *lines, last = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert last.startswith(f"q4run chat {model_path} --ram-budget ")
    assert last.endswith(" --context 64 --threads 8")
    assert sum(line.startswith("q4run") for line in lines) == 0
    assert "limit: " in result.stdout


def test_a_folder_is_converted_first(tmp_path):
    make_checkpoint("llama4_quantisable", tmp_path / "my model")
    result = invoke("plan", tmp_path / "my model", "--recipe", "fast", *MACHINE, "--json")
    assert result.exit_code == 0
    words = json.loads(result.stdout)["command"]
    assert words.startswith(
        f"q4run convert '{tmp_path}/my model' 'my model-q4_0.gguf' --recipe fast"
    )
    assert " && q4run chat 'my model-q4_0.gguf' --ram-budget " in words


def test_the_model_in_the_box():
    result = invoke("plan", *MACHINE[2:], "--threads", 1, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["command"].startswith("q4run chat --ram-budget ")
    assert "the one in the box" in result.stderr


@pytest.mark.parametrize(
    ("content", "arguments", "told"),
    [
        (None, [], "No such file"),
        (b"Once upon a time there was a text. " * 9, [], "text file"),
        (b"GGUF\3\0\0\0" + b"\xff" * 40, [], "model.gguf"),
        ("model", ["--ram-budget", "1EB"], "more than the"),
        ("model", ["--ram-budget", "1M"], "needs at least"),
    ],
)
def test_errors(tmp_path, model_path, content, arguments, told):
    path = tmp_path / "model.gguf"
    if content == "model":
        path = model_path
    elif content is not None:
        path.write_bytes(content)
    result = invoke("plan", path, *MACHINE, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert_one_error_line(result.stderr)
    assert told in result.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--geometry", "grok", "--type", "q4_0"], "choose scout, maverick"),
        (["--geometry", "scout", "--type", "q9_9"], "q9_9"),
        (["--geometry", "behemoth", "--type", "q4_0", "--ram", "16G"], "needs at least"),
        (["--geometry", "scout", "--type", "q4_0", "--context", 10**15], "needs at least"),
    ],
)
def test_errors_of_geometries(arguments, told):
    result = invoke("plan", *MACHINE, *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    assert_one_error_line(result.stderr)
    assert told in result.stderr


def test_a_folder_without_a_model(tmp_path):
    for arguments in ([], ["--type", "q4_0"]):
        result = invoke("plan", tmp_path, *arguments)
        assert result.exit_code == 1
        assert_one_error_line(result.stderr)
        assert "config.json" in result.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["--geometry", "scout"],
        ["--geometry", "scout", "model.gguf", "--type", "q4_0"],
        ["model.gguf", "--type", "q4_0"],
        ["model.gguf", "--ram-budget", "0"],
        ["model.gguf", "--disk", "fast"],
        ["model.gguf", "--memory-bandwidth", "-1G"],
        ["model.gguf", "--threads", "0"],
    ],
)
def test_wrong_usage(arguments):
    result = invoke("plan", *arguments)
    assert (result.exit_code, result.stdout) == (2, "")


def test_rates_may_be_written_per_second():
    result = invoke(
        "plan", "--geometry", "scout", "--type", "q4_0", *MACHINE, "--disk", "4GB/s", "--json",
        "--ram", "32GiB",
    )  # fmt: skip
    plan = json.loads(result.stdout)
    assert (plan["machine"]["disk"], plan["machine"]["ram"]) == (4 * GB, 32 * 2**30)
    assert os.linesep not in plan["command"]


def test_the_help_names_every_geometry():
    told = " ".join(invoke("plan", "--help").stdout.replace("│", " ").split())
    assert f": {', '.join(GEOMETRIES)}." in told


@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_shape_can_be_planned_whether_its_family_runs_or_not(name):
    told = invoke(
        "plan", "--geometry", name, "--type", "q4_0", "--ram", "1200G", *MACHINE, "--json"
    )
    plan = json.loads(told.stdout)
    # As long as no expert is in RAM, a token reads its share of the experts' weights.
    reads = plan["bytes_per_token_by_type"]
    assert reads["q4_0"] == plan["bytes_per_token"]["cold"]
    assert list(reads) == ["q4_0", "tq2_0"]
    assert reads["q4_0"] == pytest.approx(weights_of_experts(name) * Q4_0, rel=0.01)
    # Rows that are no whole ternary blocks stay at four bits: all of gpt-oss, down of some others.
    shape = GEOMETRIES[name]
    n_ternary = 2 * (shape.n_embd % 256 == 0) + (shape.n_ff % 256 == 0)
    ratio = (n_ternary * 2.0625 + (3 - n_ternary) * 4.5) / 3 / 4.5
    assert reads["tq2_0"] / reads["q4_0"] == pytest.approx(ratio, rel=1e-3)


def weights_of_experts(name: str) -> int:
    """How many weights of routed experts a token is multiplied with."""
    shape = GEOMETRIES[name]
    n_moe = sum(shape.has_experts(i) for i in range(shape.n_layers))
    return n_moe * shape.n_expert_used * 3 * shape.n_embd * shape.n_ff


@pytest.mark.parametrize(("name", "runs"), [("mixtral", True), ("gpt-oss-20b", False)])
def test_the_plan_of_a_shape_says_what_a_token_reads(name, runs):
    if not runs and GEOMETRIES[name].architecture in FAMILIES:
        pytest.skip("this family runs by now")
    told = invoke("plan", "--geometry", name, "--type", "q4_0", "--ram", "64G", *MACHINE).stdout
    words = " ".join(told.split())
    assert "Of its experts a token reads" in words
    replaced = "at tq2_0 (q4_0 where rows are not whole blocks), as" in words
    assert replaced is (name == "gpt-oss-20b")
    assert (f"cannot run {GEOMETRIES[name].architecture} models yet" in words) is not runs
    assert ("sees 128 tokens only" in words) is (name == "gpt-oss-20b")
