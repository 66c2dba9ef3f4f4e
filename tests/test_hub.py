"""Models by hub id, against a hub on this machine that speaks the true one's protocol."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
import torch
from checkpoints import prediction, save_checkpoint, save_lora
from hub import TOKEN, Hub, connect, running_hub
from huggingface_hub import constants
from pipelines import save_clip, save_family, save_pipeline
from runs import QUICK, found, make_pictures

from ph2p.errors import UserError
from ph2p.models.generators import load_generator
from ph2p.models.scorer import load_scorer

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
OUT_OF_REACH = "no folder, not all of it in the cache, and the hub out of reach; check the path, or load it once online"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    made = {name: save_family(root / name, name) for name in ("sdxl", "sd3", "flux", "pixart")}
    other = save_pipeline(root / "other", prediction_type="v_prediction")
    unet = diffusers.UNet2DConditionModel.from_pretrained(other, subfolder="unet")
    unet.conv_in.weight.data.mul_(2)
    unet.save_pretrained(other / "unet")
    return made | {"sd": save_pipeline(root / "sd"), "other": other, "clip": save_clip(root / "clip")}


@pytest.fixture
def hub(folders, monkeypatch, tmp_path):
    """A hub with owner/sd and so on, and this process's client connected to it with an empty cache."""
    with running_hub() as hub:
        for name, folder in folders.items():
            hub.add(f"owner/{name}", folder)
        connect(monkeypatch, hub, tmp_path / "home")
        monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)  # before another try
        yield hub


def pickled(folder: Path, place: Path, keep: bool) -> Path:
    """A copy with pickled weights beside the safe ones or (not `keep`) in their place; to load them would fail."""
    shutil.copytree(folder, place)
    for file in list(place.rglob("*.safetensors")):
        name = "pytorch_model.bin" if file.name == "model.safetensors" else "diffusion_pytorch_model.bin"
        for other in (name, f"{file.stem}.ckpt", f"{file.stem}.pt"):
            (file.parent / other).write_bytes(b"evil")
        if not keep:
            file.unlink()
    (place / "v1-5-pruned.ckpt").write_bytes(b"evil")
    return place


def complaint(load, *words, **options) -> str:
    with pytest.raises(UserError) as caught:
        load(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is loaded ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux", "pixart"])
def test_a_hub_id_is_its_folder_also_from_the_cache(hub, folders, monkeypatch, name):
    expected = prediction(load_generator(folders[name]))
    torch.testing.assert_close(prediction(load_generator(f"owner/{name}")), expected, rtol=0, atol=0)
    assert any(asked.host == "localhost" for asked in hub.log)  # the large files came from the other host
    hub.log.clear()
    torch.testing.assert_close(prediction(load_generator(f"owner/{name}")), expected, rtol=0, atol=0)
    torch.testing.assert_close(prediction(load_generator(f"owner/{name}", local_files_only=True)), expected)
    assert not hub.downloaded()
    hub.stop()
    torch.testing.assert_close(prediction(load_generator(f"owner/{name}")), expected, rtol=0, atol=0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    torch.testing.assert_close(prediction(load_generator(f"owner/{name}")), expected, rtol=0, atol=0)


def test_a_revision_is_a_branch_or_commit(hub, folders, tmp_path):
    hub.add("owner/model", folders["sd"], v1=folders["other"])
    commit = hub.repositories["owner/model"].commit(folders["other"])
    expected = prediction(load_generator(folders["other"]))
    for revision in ("v1", commit):
        generator = load_generator("owner/model", revision=revision, cache_dir=tmp_path / "cache")
        assert generator.pipeline.scheduler.config.prediction_type == "v_prediction"
        torch.testing.assert_close(prediction(generator), expected)
    assert (prediction(load_generator("owner/model", cache_dir=tmp_path / "cache")) - expected).abs().max() > 1e-3
    assert (tmp_path / "cache" / "models--owner--model" / "snapshots" / commit / WEIGHTS).is_file()
    assert not Path(constants.HF_HUB_CACHE).exists()


def test_a_variant_takes_its_own_files_and_no_others(hub, folders, tmp_path):
    both = shutil.copytree(folders["sd"], tmp_path / "both")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(folders["sd"], safety_checker=None)
    pipeline.unet.conv_in.weight.data.mul_(2)  # so that the files can be told apart
    pipeline.to(dtype=torch.float16).save_pretrained(both, variant="fp16")
    hub.add("owner/model", both)
    generator = load_generator("owner/model", variant="fp16")
    given = {name for name in hub.downloaded() if name.endswith(".safetensors")}
    assert len(given) == 3 and all(name.endswith(".fp16.safetensors") for name in given)
    torch.testing.assert_close(prediction(generator), prediction(load_generator(both, variant="fp16")))
    plain = load_generator("owner/model")
    torch.testing.assert_close(prediction(plain), prediction(load_generator(folders["sd"])))
    assert (prediction(plain) - prediction(generator)).abs().max() > 1e-3
    for place in (folders["sd"], "owner/sd"):
        line = complaint(load_generator, place, variant="fp16")
        assert line == f"{place}: no weights of the variant fp16; check the variant, or leave it out"


def test_a_scorer_by_hub_id(hub, folders):
    picture = torch.rand(1, 3, 20, 30, generator=torch.Generator().manual_seed(0))
    expected = load_scorer(folders["clip"]).image_features(picture)
    torch.testing.assert_close(load_scorer("owner/clip").image_features(picture), expected, rtol=0, atol=0)
    hub.stop()
    for local in (False, True):
        scorer = load_scorer("owner/clip", local_files_only=local)
        torch.testing.assert_close(scorer.image_features(picture), expected, rtol=0, atol=0)


def test_a_scorer_downloads_no_weights_of_another_kind_or_name(hub, folders, tmp_path):
    extra = shutil.copytree(folders["clip"], tmp_path / "clip")
    shutil.copy(extra / "model.safetensors", extra / "open_clip_model.safetensors")
    hub.add("owner/extra", extra)
    load_scorer("owner/extra")
    other = shutil.copytree(extra, tmp_path / "other")
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    hub.add("owner/other", other)
    assert complaint(load_scorer, "owner/other").startswith("owner/other: a model of type bert; give the folder or")
    assert complaint(load_scorer, "owner/sd").startswith("owner/sd: the hub's model lacks the file config.json; give")
    assert {name for name in hub.downloaded() if "safetensors" in name} == {"model.safetensors"}


def test_a_single_file_takes_its_configuration_from_the_hub(hub, folders, tmp_path):
    file = save_checkpoint(folders["sd"], tmp_path / "model.safetensors")
    expected = prediction(load_generator(folders["sd"]))
    torch.testing.assert_close(prediction(load_generator(file, config="owner/sd")), expected)
    assert not any("safetensors" in name for name in hub.downloaded())
    hub.stop()
    torch.testing.assert_close(prediction(load_generator(file, config="owner/sd")), expected)
    assert complaint(load_generator, file, config="owner/other") == f"owner/other: {OUT_OF_REACH}"


def test_lora_weights_by_hub_id(hub, folders, tmp_path):
    pytest.importorskip("peft")
    place = save_lora(folders["sd"], tmp_path / "lora")
    expected = prediction(load_generator(folders["sd"], lora=place))
    (place / "checkpoint-500").mkdir()
    (place / "checkpoint-500" / "model.safetensors").write_bytes(b"of training, not ours")
    (place / "optimizer.bin").write_bytes(b"evil")
    (tmp_path / "newer").mkdir()
    hub.add("owner/lora", place)
    hub.add("owner/pinned", tmp_path / "newer", v2=place)
    hub.add("owner/model", folders["other"], v1=folders["sd"])  # the revision is the model's, not that of the LoRA
    for lora in (dict(lora="owner/lora"), dict(lora="owner/pinned", lora_revision="v2")):
        generator = load_generator("owner/model", revision="v1", **lora)
        torch.testing.assert_close(prediction(generator), expected)
    assert not {"checkpoint-500/model.safetensors", "optimizer.bin"} & hub.downloaded()
    hub.stop()
    for local in (False, True):
        generator = load_generator(folders["sd"], lora="owner/lora", local_files_only=local)
        torch.testing.assert_close(prediction(generator), expected)
    assert complaint(load_generator, folders["sd"], lora="owner/none") == f"owner/none: {OUT_OF_REACH}"


def test_a_cache_that_cannot_be_written(hub, folders):
    hub.add("owner/model", folders["sd"])
    assert "cannot be kept in the cache" in complaint(load_generator, "owner/model", cache_dir="/sys/ph2p")


def test_lora_weights_in_several_files_are_not_guessed(hub, folders, tmp_path):
    pytest.importorskip("peft")
    place = save_lora(folders["sd"], tmp_path / "lora")
    file = place / "pytorch_lora_weights.safetensors"
    shutil.copy(file, place / "a.safetensors")
    load_generator(folders["sd"], lora=place)  # the one of diffusers' name
    file.rename(place / "b.safetensors")
    hub.add("owner/lora", place)
    for lora in (place, "owner/lora"):
        assert "it holds a.safetensors, b.safetensors; give" in complaint(load_generator, folders["sd"], lora=lora)
    hub.add("owner/none", pickled(place, tmp_path / "pickled", keep=False))
    assert "owner/none: only pickled weights" in complaint(load_generator, folders["sd"], lora="owner/none")


# --- pickles -----------------------------------------------------------------------------------------------------


def test_pickles_are_never_downloaded(hub, folders, tmp_path):
    for name, load in (("sd", load_generator), ("sdxl", load_generator), ("clip", load_scorer)):
        hub.add(f"owner/{name}-both", pickled(folders[name], tmp_path / f"{name}-both", keep=True))
        load(f"owner/{name}-both")
        hub.add(f"owner/{name}-evil", pickled(folders[name], tmp_path / f"{name}-evil", keep=False))
        line = complaint(load, f"owner/{name}-evil")
        assert line.startswith(f"owner/{name}-evil") and "only pickled weights, and pickled weights are unsafe" in line
    assert not any(name.endswith((".bin", ".ckpt", ".pt")) for name in hub.downloaded())


# --- tokens and trouble ------------------------------------------------------------------------------------------


def test_the_token_of_the_environment_opens_a_gated_model_and_stays_with_the_hub(hub, folders, monkeypatch):
    for name, load in (("sd", load_generator), ("clip", load_scorer)):
        hub.add(f"owner/gated-{name}", folders[name], gated=True)
        for token in (None, "hf_of_somebody_else"):
            if token:
                monkeypatch.setenv("HF_TOKEN", token)
            line = complaint(load, f"owner/gated-{name}")
            assert line == f"owner/gated-{name}: the model is gated; accept its licence on the hub and set HF_TOKEN"
        hub.log.clear()
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        load(f"owner/gated-{name}")
        tokens = {host: {asked.token for asked in hub.log if asked.host == host} for host in ("127.0.0.1", "localhost")}
        assert TOKEN in tokens["127.0.0.1"] and tokens["localhost"] == {None}
        monkeypatch.delenv("HF_TOKEN")


@pytest.mark.parametrize("load", [load_generator, load_scorer])
def test_trouble_gives_one_line_with_its_mend(hub, monkeypatch, load):
    name = "sd" if load is load_generator else "clip"
    missing = "owner/none: neither a folder nor a model on the hub; check the name, or set HF_TOKEN"
    assert complaint(load, "owner/none") == missing
    revised = complaint(load, f"owner/{name}", revision="v9")
    assert revised == f"owner/{name}: the hub has no such revision of it; check the revision"
    assert "a possible name on the hub; check the name" in complaint(load, "owner/a--b")
    assert complaint(load, f"owner/{name}", local_files_only=True) == f"owner/{name}: {OUT_OF_REACH}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert complaint(load, "owner/none") == missing  # for whom the hub knows, it is another answer
    monkeypatch.setenv("HF_TOKEN", "not a token")
    assert complaint(load, "owner/sd") == "owner/sd: the hub refuses the request; check the name and HF_TOKEN"
    monkeypatch.delenv("HF_TOKEN")
    for status, line in ((403, "the hub refuses the request"), (503, OUT_OF_REACH)):
        hub.status = status
        assert line in complaint(load, f"owner/{name}")
    hub.stop()
    assert complaint(load, f"owner/{name}") == f"owner/{name}: {OUT_OF_REACH}"
    hub.log.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    hub.status = None
    hub.start()
    assert complaint(load, f"owner/{name}") == f"owner/{name}: {OUT_OF_REACH}" and not hub.log


def test_a_pipeline_without_an_index_is_none(hub):
    line = complaint(load_generator, "owner/clip")
    assert line == "owner/clip: the hub's model lacks the file model_index.json; choose a diffusers pipeline"


# --- downloads that break off ------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [load_generator, load_scorer])
def test_a_download_that_breaks_off_is_taken_up_again(hub, monkeypatch, load):
    name = "sd" if load is load_generator else "clip"
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cuts = 1
    load(f"owner/{name}")
    (resumed,) = (asked for asked in hub.log if asked.range)
    assert resumed.status == 206


@pytest.mark.parametrize("load", [load_generator, load_scorer])
def test_half_a_snapshot_is_told_and_completed(hub, load):
    name = "sd" if load is load_generator else "clip"
    hub.cuts, hub.stops_after_cut = 1, True
    assert "the hub does not give it (" in complaint(load, f"owner/{name}")
    for local in (False, True):
        assert complaint(load, f"owner/{name}", local_files_only=local) == f"owner/{name}: {OUT_OF_REACH}"
    (snapshot,) = Path(constants.HF_HUB_CACHE).glob("*/snapshots/*")
    kept = {file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()}
    hub.log.clear()
    hub.start()
    load(f"owner/{name}")
    assert kept and hub.downloaded() and not kept & hub.downloaded()


# --- as a user runs it -------------------------------------------------------------------------------------------

DRIVER = """
import json, sys, train
for words in json.loads(sys.argv[1]):
    code = train.main(words)
    print(f"<{code}>", file=sys.stderr, flush=True)
"""


def environment(hub: Hub, home: Path, **more: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    settings = dict(OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT), HF_ENDPOINT=hub.url, HF_HOME=str(home))
    return inherited | settings | more


@pytest.mark.slow
def test_the_command_loads_from_the_hub_and_later_from_its_cache(folders, tmp_path):
    make_pictures(tmp_path / "pictures", 1)
    models = ["generator=folder", "generator.path=owner/model", "generator.allowlist=null", "scorer=folder"]
    words = [*QUICK, *models, "scorer.path=owner/clip", f"data.path={tmp_path / 'pictures'}", f"output={tmp_path}"]
    options = dict(capture_output=True, text=True, cwd=tmp_path, timeout=300)
    with running_hub() as hub:
        hub.add("owner/model", folders["sd"], gated=True)
        hub.add("owner/clip", folders["clip"])
        command = [sys.executable, str(ROOT / "train.py"), *words, "name=online"]
        online = subprocess.run(command, env=environment(hub, tmp_path / "home", HF_TOKEN=TOKEN), **options)
        assert online.returncode == 0, online.stderr
        assert {asked.token for asked in hub.log if "resolve" in asked.path and asked.host != "localhost"} == {TOKEN}
        tries = [[*words, "name=offline"], [*words, "name=other", "generator.revision=v1"]]
    command = [sys.executable, "-c", DRIVER, json.dumps(tries)]
    offline = subprocess.run(command, env=environment(hub, tmp_path / "home", HF_HUB_OFFLINE="1"), **options)
    assert found(tmp_path / "offline") == found(tmp_path / "online")
    first, _, second = offline.stderr.partition("<0>\n")
    assert "hub" not in first.lower(), first  # nothing was tried in vain
    assert second == f"error: owner/model: {OUT_OF_REACH}\n<2>\n"
