"""`zoo doctor`: floors of libraries, GPUs with their precisions, space, and which weights load now."""

import json
from importlib import metadata
from types import SimpleNamespace

import pytest
import torch
from servers import Server, status, whole

from zoo.commands import doctor
from zoo.commands.doctor import diagnose

MODEL = "glcl-encoder"


@pytest.fixture(autouse=True)
def no_other_weights(monkeypatch):
    """Only one model's records are looked at, so that the tests are quick."""
    monkeypatch.setattr(doctor, "list_models", lambda: [MODEL])


def checks(**options):
    return {check.name: check for check in diagnose(**options)}


def test_versions_are_held_against_the_floors_of_the_package(monkeypatch):
    """What is missing or too old is a problem with the way out; of an extra only what is there, and too old."""
    needs = [
        "torch>=999",
        "no-such-library>=2",
        'numpy>=999; extra == "train"',
        'absent>=1; extra == "train"',
        "timm>=1",
    ]
    monkeypatch.setattr(metadata, "requires", lambda name: needs)
    found = checks()
    version = metadata.version("torch")
    assert (found["torch"].ok, found["timm"].ok, found["numpy"].ok) == (False, True, False)
    assert found["torch"].found == f"{version}, but >=999 is needed: pip install 'torch>=999'"
    assert found["no-such-library"].found == "not installed: pip install 'no-such-library>=2'"
    assert "absent" not in found


def test_the_floors_are_those_of_the_metadata():
    """Nothing is written twice: each library that the package needs stands in the diagnosis."""
    found = checks()
    assert found["torch"].found == f"{metadata.version('torch')}, >=2.6 needed"
    assert {"monai", "requests", "typer", "nibabel"} <= set(found)


@pytest.mark.parametrize(("has_bf16", "said"), [(True, "fp32, fp16, bf16"), (False, "fp32, fp16")])
def test_gpus_are_named_with_what_they_compute_in(monkeypatch, has_bf16, said):
    """Each by its own number; bf16 where the hardware has it, not where torch emulates it."""
    facts = SimpleNamespace(name="Card", total_memory=24 * 2**30)
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: facts)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)
    monkeypatch.setattr(torch.cuda, "_exchange_device", lambda number: chosen.append(number) or 0)
    monkeypatch.setattr(torch.cuda, "_maybe_exchange_device", lambda number: 0)
    found = doctor._gpus(None)
    assert [(each.name, each.found) for each in found] == [(f"cuda:{n}", f"Card, 24 GiB, {said}") for n in (0, 1)]
    assert chosen == [0, 1]


def test_free_space_is_that_of_the_cache(monkeypatch, tmp_path):
    """Also where the cache does not exist yet."""
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=12_345_000_000))
    assert "12.3 GB free" in checks(cache_dir=tmp_path / "not" / "yet")["cache"].found


def test_which_weights_load_now(monkeypatch):
    """What is here, what is to be fetched, what nobody has published, and what the policy refuses."""
    found = checks()
    assert found[f"{MODEL}.phantom"].found == "loads now: on this machine, digest right"
    assert found[f"{MODEL}.acdc"].found == "cannot be loaded: not-published"
    monkeypatch.setenv("ZOO_POLICY", "commercial")
    assert checks()[f"{MODEL}.acdc"].found == "refused by ZOO_POLICY=commercial"


def test_hosts_are_asked_with_online_alone(monkeypatch, tmp_path, zoo):
    """Gated weights: without --online no request, with it what the host says; nothing is fetched."""
    gated = {"models": [MODEL], "state": "on-request", "bytes": 9, "sha256": "0" * 64}
    with Server({"/open": whole(b"\x80" * 9), "/gated": status(401)}) as server:
        weights = [{"tag": tag, "sources": [f"{server.root}/{tag}"]} | gated for tag in ("open", "gated")]
        (tmp_path / "m.json").write_text(json.dumps({"schema": 1, "weights": weights}))
        monkeypatch.setenv("ZOO_MANIFEST", str(tmp_path / "m.json"))
        assert checks()[f"{MODEL}.gated"].found.endswith("--online asks whether you may fetch it")
        assert server.requests == []
        found = checks(online=True)
        assert "/open answers" in found[f"{MODEL}.open"].found
        assert "401" in found[f"{MODEL}.gated"].found
        monkeypatch.setenv("ZOO_OFFLINE", "1")
        assert "connections are forbidden" in checks()[f"{MODEL}.gated"].found
        assert zoo("doctor", "--online")[0] == 2
    here = tmp_path / "zoo-home" / "files"
    assert {path.suffix for path in here.iterdir()} == {".json"}  # stamps of what lies in the package
