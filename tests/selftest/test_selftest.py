"""`zoo selftest`: what is stored for whom, what it finds wrong, and where."""

import importlib
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from zoo.errors import OptionError
from zoo.registry import entries, get_entry, list_models
from zoo.selftest import cases_of, drawing, run_case, running, stored_cases, streaming
from zoo.selftest.cases import COMMAND
from zoo.selftest.stages import OUTPUT, Stage, furthest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
CPU = torch.device("cpu")
SMALL = "genesis-encoder"
"""Takes a third of a second."""


@pytest.fixture
def script(monkeypatch):
    """The script that stores the values."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("selftest_values")


@pytest.fixture
def changed(monkeypatch):
    """Give every network that is built a change before it runs."""

    def change(how):
        build = streaming.build_network
        monkeypatch.setattr(streaming, "build_network", lambda *given: how(build(*given)))

    return change


def case_of(model, **options):
    """The case of a network with these options and drawn tensors."""
    (found,) = (c for c in stored_cases() if (c.model, c.tag, c.options) == (model, "", options))
    return found


# --- what is stored ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", list_models())
def test_every_entry_has_values(script, model):
    """A new entry, a record with other options, and weights that come with the package."""
    due = script.due(model)
    stored = [replace(case, stages=()) for case in stored_cases() if case.model == model]
    assert stored == due, f"store what is missing: {COMMAND} {model}"


def test_a_new_entry_gets_the_command(monkeypatch):
    """Whoever adds one, and asks for its test, reads how to store its values."""
    new = replace(get_entry(SMALL), name="new-network")
    monkeypatch.setattr("zoo.registry.entries", lambda: {**entries(), "new-network": new})
    said = f"new-network: no values are stored for its network; store them: {COMMAND} new-network"
    with pytest.raises(OptionError, match=re.escape(said)):
        cases_of("new-network")


def test_the_stages_reach_from_the_first_layer_to_the_output():
    """Those of `feature_info` are among them, in the order in which they run."""
    for case in stored_cases():
        names = [stage.name for stage in case.stages]
        assert names[-1].startswith(OUTPUT), case.name
        assert len(names) == len(set(names)) >= 5, case.name


def test_the_file_is_small():
    """It goes into every wheel."""
    assert sum(path.stat().st_size for path in Path(running.__file__).parent.glob("*.json")) < 300_000


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_numbers_are_those_of_splitmix64():
    """Computed here in whole numbers of Python, which have no width that could overflow otherwise."""

    def fraction(position):
        mixed = position * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
        return ((mixed ^ mixed >> 31) >> 40) / 2**24

    found = drawing._fractions()
    assert found[:1000].tolist() == [fraction(i + 1) for i in range(1000)]
    assert found.min() >= 0
    assert found.max() < 1
    assert abs(found.mean() - 0.5) < 1e-3  # the deviation of a mean of a million is 3e-4


def test_tensors_differ_by_name_and_are_fit_for_their_part():
    """Variances are above 0, weights have He's deviation, counters and tables their own values."""
    kernel = torch.empty(64, 32, 3, 3, 3)
    first, second = (drawing.draw_tensor(f"{name}.weight", kernel) for name in ("one", "two"))
    assert not torch.equal(first, second)
    assert torch.equal(first, drawing.draw_tensor("one.weight", kernel.to("meta")))
    assert first.std().item() == pytest.approx((2 / (32 * 27)) ** 0.5, rel=0.02)
    assert drawing.draw_tensor("bn.running_var", torch.empty(512)).min() >= 0.5
    assert drawing.draw_tensor("bn.num_batches_tracked", torch.tensor(0)) == 1
    table = drawing.draw_tensor("attn.relative_position_index", torch.empty(343, 343, dtype=torch.int64))
    assert table.dtype == torch.int64
    assert (table[0, 0], table.max()) == (1098, 13**3 - 1)
    with pytest.raises(ValueError, match=r"part\.order holds whole numbers"):
        drawing.draw_tensor("part.order", torch.zeros(3, dtype=torch.int64))


def test_long_tensors_have_no_two_rows_alike():
    """They are made of one cycle of numbers, which begins anew within a row."""
    drawn = drawing.draw_tensor("long.weight", torch.empty(1500, 1000))
    assert torch.unique(drawn, dim=0).shape == drawn.shape


def test_a_network_holds_no_more_than_the_part_that_runs(changed):
    """So that one of 4.6 GB runs in less than half of that; afterwards it holds nothing."""
    held, network = [], streaming.build_streamed(get_entry(SMALL), dict(get_entry(SMALL).config), CPU)
    for module in network.modules():
        module.register_forward_hook(
            lambda *_: held.append(sum(not t.is_meta for t in (*network.parameters(), *network.buffers())))
        )
    network(drawing.draw_input(0, (1, 1, 16, 16, 16)))
    assert len(held) > 20
    assert max(held) <= 5  # a norm's weight, bias, mean, variance and counter
    assert held[-1] == 0


def test_a_tensor_that_no_file_has_is_refused(changed):
    """It would keep what its constructor gave it."""

    def with_buffer(network):
        network.register_buffer("table", torch.zeros(3), persistent=False)
        return network

    changed(with_buffer)
    assert run_case(case_of(SMALL)).problem == "ValueError: no file has values for table"


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["down_tr64", "down_tr256", "output"])
def test_one_changed_layer_is_named_by_its_stage(changed, stage):
    """A convolution that repeats the border in place of zeros, or a pooled feature with 1 % of another."""

    def change(network):
        if stage == OUTPUT:
            network.register_forward_hook(lambda _, __, out: out + 0.01 * out.roll(1, 1))
        else:
            layers = [part for part in network.get_submodule(stage).modules() if isinstance(part, nn.Conv3d)]
            layers[-1].padding_mode = "replicate"
        return network

    changed(change)
    outcome = run_case(case_of(SMALL))
    assert not outcome.ok
    assert not outcome.problem
    assert outcome.first.stage == stage


def test_tensors_under_another_name_are_found(monkeypatch):
    """A library that calls a layer otherwise, or gives two layers each other's values."""
    real = streaming.draw_tensor
    monkeypatch.setattr(streaming, "draw_tensor", lambda name, like: real(name.replace("down_tr256", "up"), like))
    assert run_case(case_of(SMALL)).first.stage == "down_tr256"


@pytest.mark.slow
@pytest.mark.parametrize(("built", "stored"), [("complete", "duplicated"), ("duplicated", "complete")])
def test_the_other_merging_of_a_swin_transformer_is_found(built, stored):
    """At the first stage that ends with one: before it both are the same network."""
    theirs = case_of("monai-ssl-swinvit", **({"merging": "complete"} if stored == "complete" else {}))
    outcome = run_case(replace(theirs, options={"merging": built}))
    assert outcome.first.stage == "layers1.0"
    assert outcome.first.size > 100 * outcome.tolerance


def test_what_is_not_a_number_is_no_small_difference():
    """NaN is neither more nor less than a tolerance."""
    expected = Stage("stage", (2,), 1.0, 0.5, 2.0, (1.0, 2.0))
    for came in (replace(expected, samples=(1.0, float("nan"))), replace(expected, mean=float("inf"))):
        found = furthest(expected, came)
        assert not found.size <= 1e9
        assert found.what == ("mean" if came.mean != 1 else "value 2 of 2")


@pytest.mark.slow
def test_other_stages_are_a_problem(changed):
    """One that did not run, one of another shape, and one more."""
    case = case_of(SMALL)
    first, *rest = case.stages
    twice = replace(case, stages=(first, first, *rest))
    assert run_case(twice).problem.startswith("stage down_tr64 of shape (2, 64, 16, 24, 32) is expected, down_tr128 of")
    fewer = replace(case, stages=case.stages[:-1])
    assert run_case(fewer).problem == "stage output came, of which no values are stored"
    wider = replace(case, stages=(replace(first, shape=(1, *first.shape[1:])), *rest))
    assert "of shape (1, 64, 16, 24, 32) is expected, down_tr64 of shape (2, 64," in run_case(wider).problem


def test_what_a_library_raises_is_the_result_of_one_case(changed):
    """The others are tested all the same."""

    def refuse(network):
        raise TypeError("forward() got an unexpected keyword")

    changed(refuse)
    outcome = run_case(case_of(SMALL))
    assert (outcome.ok, outcome.problem) == (False, "TypeError: forward() got an unexpected keyword")


@pytest.mark.slow
def test_half_precision_has_its_own_tolerance():
    """What rounding to 8 bits does is more than fp32 allows, and less than bf16 does."""
    case = case_of(SMALL)
    half, whole = (run_case(case, precision=precision) for precision in ("bf16", "fp32"))
    assert half.ok
    assert half.largest > whole.tolerance > 3 * whole.largest
    with pytest.raises(OptionError, match="precision='fp8': fp32, bf16, fp16 are known"):
        run_case(case, precision="fp8")


# --- the command ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_says_what_was_tested(zoo):
    """A line for each network and for weights that come with the package; then how near they are, and with what."""
    code, out, _ = zoo("selftest", "glcl-encoder.phantom", SMALL, SMALL)
    lines = [re.sub(r" +\d+\.\d s", "", line) for line in out.splitlines()]
    assert code == 0
    assert lines[:4] == [
        "ok  glcl-encoder: network with drawn tensors",
        "ok  glcl-encoder: weights glcl-encoder.phantom",
        "ok  genesis-encoder: network with drawn tensors",
        "ok  genesis-encoder: network with drawn tensors, norm='batch'",
    ]
    assert lines[4].startswith("4 of 4 compute what is stored, on cpu in fp32: ")
    assert f"torch {torch.__version__.partition('+')[0]}" in lines[5]


@pytest.mark.slow
def test_the_command_names_the_stage_and_the_numbers(zoo, changed):
    """What was expected, what came and what is allowed; exit code 1; a program gets the same."""

    def change(network):
        network.down_tr128.register_forward_hook(lambda _, __, out: out * 1.5)
        return network

    changed(change)
    code, out, err = zoo("selftest", "genesis-encoder.chest-ct")
    expected = next(stage for stage in case_of(SMALL).stages if stage.name == "down_tr128")
    said = re.search(
        r"DIFFERS .* first at stage down_tr128, 2 of 5: largest value (\S+) is expected, (\S+) came, (\S+) off is all",
        out,
    )
    assert code == 1
    assert "1 of 1 do not compute here what is stored" in err
    wanted, came, allowed = map(float, said.groups())
    assert wanted == pytest.approx(expected.largest, rel=1e-5)
    assert came == pytest.approx(1.5 * wanted, rel=1e-4)
    assert allowed == pytest.approx(running.tolerance_for("cpu", "fp32") * expected.deviation, rel=0.1)
    code, out, _ = zoo("selftest", "genesis-encoder.chest-ct", "--json")
    (row,) = json.loads(out)
    assert code == 1
    assert (row["ok"], row["first"]["stage"], row["model"]) == (False, "down_tr128", SMALL)


@pytest.mark.parametrize("words", [(), ("--all", SMALL)])
def test_the_command_wants_names_or_all(zoo, words):
    code, _, err = zoo("selftest", *words)
    assert code == 2
    assert "expected MODEL or MODEL.TAG, any number, or --all" in err


def with_record(monkeypatch, tmp_path, **facts):
    """Have a user's own record come first."""
    record = {"state": "hosted", "sources": ["file:none"], "bytes": None, "sha256": "0" * 64} | facts
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"schema": 1, "weights": [record]}), "utf-8")
    monkeypatch.setenv("ZOO_MANIFEST", str(manifest))


def test_other_weights_of_the_same_tag_are_not_held_against_ours(monkeypatch, tmp_path):
    """A user's record may stand before the package's: the network is tested, its weights are not these."""
    assert [case.tag for case in cases_of("glcl-encoder.phantom")] == ["", "phantom"]
    with_record(monkeypatch, tmp_path, tag="phantom", models=["glcl-encoder"])
    assert [case.tag for case in cases_of("glcl-encoder.phantom")] == [""]


def test_weights_that_the_policy_refuses_are_not_run(monkeypatch):
    """Their network is."""
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    monkeypatch.setattr("zoo.selftest.cases.refuses", lambda record: True)
    assert [case.tag for case in cases_of("glcl-encoder.phantom")] == [""]


def test_a_record_of_another_network_is_refused(monkeypatch, tmp_path):
    """No values are stored for it, and those of the published one say nothing of it."""
    with_record(monkeypatch, tmp_path, tag="mine", models=["glcl-unet"], options={"num_classes": 5})
    said = "glcl-unet.mine: no values are stored for a network with num_classes=5; `zoo selftest glcl-unet` tests"
    with pytest.raises(OptionError, match=re.escape(said)):
        cases_of("glcl-unet.mine")
