"""Load and Save Depth Head through the host's folders, and whether a head fits a model of the host."""

import errno
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import comfy.model_management
import comfy.ops
import folder_paths
import pytest
import torch

from inner_guidance.depth_head.architectures.pixel_mlp import PixelMLP
from inner_guidance.depth_head.head import DepthHead
from inner_guidance.host.depth.heads import HostedDepthHead
from inner_guidance.host.depth.model_folders import register_model_folder
from inner_guidance.nodes.classifier_head_files import InnerSaveClassifierHead
from inner_guidance.nodes.depth_head_files import FOLDER, InnerLoadDepthHead, InnerSaveDepthHead
from inner_guidance.nodes.depth_prior_files import InnerSaveDepthPrior
from inner_guidance.tests.support.readout_reference import SDXL_CHANNELS, public_checkpoint

pytestmark = pytest.mark.oldest_host

SMALL_FAMILY = "a UNet of 32 channels with a context of 16"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """models/depth_heads, which does not exist yet."""
    made = tmp_path / "models" / FOLDER
    _, extensions = folder_paths.folder_names_and_paths[FOLDER]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, FOLDER, ([str(made)], extensions))
    return made


def hosted(seed=0):
    with torch.inference_mode(False):
        torch.manual_seed(seed)
        network = PixelMLP({"o1": 64, "o2": 32}, strong=("o1", "o2"), weak=("o1",)).eval()
    return HostedDepthHead.of(DepthHead(network, SMALL_FAMILY, name="made_here"))


def save(head, prefix="depth_head"):
    return InnerSaveDepthHead.execute(head, prefix)


def load(name):
    return InnerLoadDepthHead.execute(name).result[0]


def test_a_saved_head_is_listed_and_loaded(folder):
    head = hosted()
    save(head)

    assert folder_paths.get_filename_list_(FOLDER)[0] == ["depth_head_00001_.safetensors"]
    loaded = load("depth_head_00001_.safetensors")
    before, after = (h.head.network.state_dict() for h in (head, loaded))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert loaded.head.name == "depth_head_00001_.safetensors"


def test_files_are_numbered_as_the_host_does(folder):
    said = [save(hosted(seed=seed), "rooms/mine").ui.as_dict()["text"] for seed in range(2)]
    save(hosted(), "rooms/other")

    names = ["mine_00001_.safetensors", "mine_00002_.safetensors", "other_00001_.safetensors"]
    assert sorted(os.listdir(folder / "rooms")) == names
    assert [name in text[0] for name, text in zip(names, said, strict=False)] == [True, True]


@pytest.mark.parametrize("prefix", ["../outside", "/outside", "rooms/../../outside", "..", "", "."])
def test_a_prefix_that_leaves_the_folder_is_refused(folder, prefix):
    with pytest.raises(ValueError, match=r"points outside models/depth_heads: write a name") as error:
        save(hosted(), prefix)
    assert InnerSaveDepthHead.validate_inputs(prefix) == str(error.value)
    assert not list(folder.parent.parent.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("prefix", "sentence"),
    [
        *((f"rooms/a{c}b", "has a character that file names cannot have on every system") for c in '<>:"|?*'),
        ("a\0b", r"^filename_prefix 'a\\x00b' has a character"),
        ("a\nb", r"^filename_prefix 'a\\nb' has a character"),
        ("a\ud800b", r"^filename_prefix 'a\\ud800b' has a character"),
        ("C:\\heads\\a", "has a character that file names"),
        *((name, "is reserved on Windows") for name in ("CON", "nul", "Com1", "LPT9.old", "aux ")),
        ("con/a", "'con' is reserved on Windows. Choose"),
        ("%date:yyyy-MM-dd%/a", "only. Write %year%, %month%, %day%"),
        ("rooms./a", r"'rooms\.' ends in a dot or a space"),
        ("rooms/a ", "'a ' ends in a dot or a space"),
        ("a" * 300, r"^filename_prefix 'a{79}…' is too long: a name may have 200 bytes"),
        ("ü" * 101, "is too long"),
        ("rooms\\..\\..\\outside", "points outside models/depth_heads"),
    ],
)
def test_a_name_that_some_system_cannot_hold_is_refused_on_all(folder, prefix, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        save(hosted(), prefix)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
    assert InnerSaveDepthHead.validate_inputs(prefix) == str(error.value)
    assert not list(folder.parent.parent.rglob("*_.safetensors"))


@pytest.mark.parametrize(
    ("prefix", "path"),
    [
        ("rooms\\mine", "rooms/mine_00001_.safetensors"),
        ("console", "console_00001_.safetensors"),
        ("com10.v1", "com10.v1_00001_.safetensors"),
        ("./rooms//mine", "rooms/mine_00001_.safetensors"),
        ("部屋 ü", "部屋 ü_00001_.safetensors"),
        ("a" * 200, "a" * 200 + "_00001_.safetensors"),
    ],
)
def test_names_that_every_system_can_hold(folder, prefix, path):
    assert InnerSaveDepthHead.validate_inputs(prefix) is True
    assert not folder.exists()
    save(hosted(), prefix)
    assert [p.relative_to(folder).as_posix() for p in folder.rglob("*.*")] == [path]


def test_savers_at_the_same_time_lose_no_file(folder, monkeypatch):
    """All of them see an empty folder before the first writes."""
    at_once = threading.Barrier(4)
    number = folder_paths.get_save_image_path

    def together(*args):
        found = number(*args)
        at_once.wait(10)
        return found

    monkeypatch.setattr(folder_paths, "get_save_image_path", together)
    heads = [hosted(seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(save, heads))

    names = [f"depth_head_0000{i}_.safetensors" for i in (1, 2, 3, 4)]
    assert sorted(os.listdir(folder)) == names
    assert sorted(text for node in said for text in node.ui.as_dict()["text"]) == [
        f"Saved as {name}" for name in names
    ]
    biases = {load(name).head.network.strong.depth.bias.item() for name in names}
    assert biases == {head.head.network.strong.depth.bias.item() for head in heads}


@pytest.mark.skipif(os.name == "nt", reason="what POSIX says")
def test_a_folder_that_is_a_file_is_one_sentence(folder):
    folder.parent.mkdir()
    folder.touch()
    with pytest.raises(ValueError, match=rf"^{folder}.* cannot be written \(File exists\): check the disk"):
        save(hosted())
    folder.unlink()
    folder.mkdir()
    (folder / "rooms").touch()
    with pytest.raises(ValueError, match=rf"^{folder}/rooms/.* cannot be written \(Not a directory\)"):
        save(hosted(), "rooms/mine")
    said = InnerSaveDepthHead.validate_inputs("rooms/mine")
    assert said.startswith(f"{folder}/rooms/mine cannot be written (Not a directory)")
    assert os.listdir(folder) == ["rooms"]


def test_a_folder_that_may_not_be_written_is_one_sentence(folder, monkeypatch):
    def refused(path, **kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(Path, "touch", refused)
    with pytest.raises(
        ValueError, match=rf"{FOLDER}.depth_head.* cannot be written \(Permission denied\): check"
    ):
        save(hosted())
    assert os.listdir(folder) == []


@pytest.mark.parametrize("saver", [InnerSaveDepthHead, InnerSaveDepthPrior, InnerSaveClassifierHead])
def test_the_host_hears_before_a_training_what_a_saver_would_refuse_after_it(saver, monkeypatch):
    assert saver.validate_inputs("rooms/mine") is True
    assert saver.validate_inputs(None) is True  # the output of another node
    assert "'my?head' has a character that file names cannot" in saver.validate_inputs("my?head")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "mine cannot be written (Permission denied): check the disk" in saver.validate_inputs("mine")


def test_a_full_disk_is_one_sentence_and_leaves_nothing(folder, monkeypatch):
    save(hosted())
    write = Path.write_bytes

    def full(path, content):
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ValueError, match=r"depth_head_00002_.safetensors cannot be written \(No space left"):
        save(hosted())
    assert os.listdir(folder) == ["depth_head_00001_.safetensors"]


def test_an_interrupted_saver_leaves_nothing(folder, monkeypatch):
    def interrupted(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_bytes", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(hosted())
    assert os.listdir(folder) == []


def test_the_folder_is_registered_the_hosts_way():
    folders, extensions = folder_paths.folder_names_and_paths[FOLDER]
    assert os.path.join(folder_paths.models_dir, FOLDER) in folders
    assert extensions == {".safetensors", ".pt"}


def test_folders_of_extra_model_paths_stay_in_front(tmp_path, monkeypatch):
    """The host adds them before it loads the pack, and without extensions."""
    monkeypatch.setattr(folder_paths, "folder_names_and_paths", dict(folder_paths.folder_names_and_paths))
    folder_paths.add_model_folder_path("heads_of_test", str(tmp_path))
    (tmp_path / "a.safetensors").touch()
    (tmp_path / "readme.txt").touch()

    register_model_folder("heads_of_test", (".safetensors",))
    register_model_folder("heads_of_test", (".safetensors",))

    assert folder_paths.get_folder_paths("heads_of_test") == [
        str(tmp_path),
        os.path.join(folder_paths.models_dir, "heads_of_test"),
    ]
    assert folder_paths.get_filename_list_("heads_of_test")[0] == ["a.safetensors"]


def test_a_replaced_file_runs_the_node_again(folder):
    save(hosted())
    path = folder / "depth_head_00001_.safetensors"
    first = InnerLoadDepthHead.fingerprint_inputs(path.name)
    os.utime(path, (1, 1))
    assert InnerLoadDepthHead.fingerprint_inputs(path.name) == first
    save(hosted(seed=1))
    (folder / "depth_head_00002_.safetensors").replace(path)
    assert InnerLoadDepthHead.fingerprint_inputs(path.name) != first


@pytest.mark.parametrize("name", ["gone.safetensors", "../../etc/passwd"])
def test_a_file_that_is_not_there_is_one_sentence(folder, name):
    with pytest.raises(ValueError, match=r"There is no file .* in models/depth_heads: refresh"):
        load(name)


def test_a_readout_file_loads_and_is_saved_as_ours(folder):
    folder.mkdir(parents=True)
    torch.save(public_checkpoint(SDXL_CHANNELS), folder / "readout_sdxl_spatial_depth.pt")
    readout = load("readout_sdxl_spatial_depth.pt")
    save(readout, "readout")
    ours = load("readout_00001_.safetensors")

    before, after = (h.head.network.state_dict() for h in (readout, ours))
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert ours.head.model_family == "Stable Diffusion XL"


def test_the_host_moves_the_head():
    head = hosted()
    comfy.model_management.load_models_gpu([head.patcher])
    assert any(loaded.model is head.patcher for loaded in comfy.model_management.current_loaded_models)
    comfy.model_management.unload_all_models()
    features = {"o1": torch.zeros(1, 64, 4, 4), "o2": torch.zeros(1, 32, 4, 4)}
    assert head.head.network(features, torch.zeros(1), (4, 4)).isfinite().all()
