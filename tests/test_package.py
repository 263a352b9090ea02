"""The model package: what goes in comes out, and what is not whole or not ours is refused in one sentence."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterator
from copy import deepcopy as copy_of
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests import tiny
from torchgeo_debias._package_io import read_package
from torchgeo_debias.errors import DebiasError, OutputError, PackageError
from torchgeo_debias.inference.classifier import PackagePredictor, seen
from torchgeo_debias.package import MODEL, ONNX, ModelPackage, check_target

FILES = [
    "adapter/adapter_config.json",
    "adapter/adapter_model.safetensors",
    "head.safetensors",
    "model.json",
    "raw/adapter/adapter_config.json",
    "raw/adapter/adapter_model.safetensors",
    "raw/head.safetensors",
]

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A package to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def chips(n: int = 5) -> tuple[np.ndarray, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (n, 3, tiny.CHIP, tiny.CHIP), dtype=np.uint8)
    return images, np.ones((n, tiny.CHIP, tiny.CHIP), dtype=bool)


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def zip_of(folder: Path, path: Path, **more: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**files_of(folder), **more}.items():
            archive.writestr(name, data)
    return path


def edit(folder: Path, change: Edit) -> None:
    """Change ``model.json``."""
    info = json.loads((folder / MODEL).read_text())
    change(info)
    (folder / MODEL).write_text(json.dumps(info))


def sign(folder: Path) -> None:
    """Make the digests right, as somebody would who means to deceive or has another program."""
    digests = {n: hashlib.sha256(d).hexdigest() for n, d in files_of(folder).items() if n != MODEL}
    edit(folder, lambda info: info.update(files=digests))


_WRONG: tuple[Any, ...] = (None, "x", -1, 10**12, [], {})

_LORA = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora")


def leaves(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where the values of a JSON object are that hold no others, and where lists are."""
    items: Any = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if path and not isinstance(value, dict):
        yield path
    for key, part in items:
        yield from leaves(part, (*path, key))


def damaged(info: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """``model.json`` with one value after the other in place of each leaf, and without it."""
    for path in leaves(info):
        for value in _WRONG:
            changed = copy_of(info)
            parent(changed, path)[path[-1]] = value
            yield f"{'.'.join(map(str, path))} = {value!r}", changed
        changed = copy_of(info)
        del parent(changed, path)[path[-1]]
        yield f"no {'.'.join(map(str, path))}", changed


def parent(value: Any, path: tuple[str | int, ...]) -> Any:
    """What holds the value at a path."""
    for key in path[:-1]:
        value = value[key]
    return value


def refused(path: Path, part: str) -> None:
    with pytest.raises(PackageError, match=part) as caught:
        ModelPackage.load(path)
    text = str(caught.value)
    assert text.endswith(".")
    assert "\n" not in text
    assert str(path) in text


@pytest.mark.parametrize("name", ["model", "model.tgd", "deep/er/model.TGD"])
def test_what_is_saved_comes_back(tiny_package: ModelPackage, tiny_weights: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tiny_package.save(path)
    assert path.is_dir() == (path.suffix == "")
    back = ModelPackage.load(str(path))
    assert back.to_json() == tiny_package.to_json()
    assert back.table == tiny_package.table
    assert back.spec == tiny_package.spec
    assert back.normalisation == tiny_package.normalisation
    before = PackagePredictor(tiny_package, weights=str(tiny_weights), precision="32").predict(*chips())
    after = PackagePredictor.load(path, weights=str(tiny_weights), precision="32").predict(*chips())
    assert np.array_equal(before.probabilities, after.probabilities)
    assert before.raw is not None
    assert after.raw is not None
    assert np.array_equal(before.raw, after.raw)
    assert not np.array_equal(before.raw, before.probabilities)
    assert tiny.listing(tmp_path)[0] == name.partition("/")[0]  # nothing hidden is left


def test_equal_packages_are_equal_bytes(tiny_package: ModelPackage, tmp_path: Path) -> None:
    for name in ("a", "b", "a.tgd", "b.tgd"):
        tiny_package.save(tmp_path / name)
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    assert sorted(files_of(tmp_path / "a")) == FILES
    assert (tmp_path / "a.tgd").read_bytes() == (tmp_path / "b.tgd").read_bytes()
    ModelPackage.load(tmp_path / "a").save(tmp_path / "c.tgd")
    assert (tmp_path / "c.tgd").read_bytes() == (tmp_path / "b.tgd").read_bytes()


def test_model_json_says_what_the_design_asks(tiny_model: Path) -> None:
    info = json.loads((tiny_model / MODEL).read_text())
    assert info["format_version"] == 1
    assert info["task"] == "classification"
    assert [c["name"] for c in info["classes"]] == list(tiny.TRAIN_COUNTS)
    assert {c["name"]: c["count"] for c in info["classes"]} == tiny.TRAIN_COUNTS
    assert {c["name"]: c["group"] for c in info["classes"]} == {"bare": "head", "field": "middle", "water": "tail"}
    assert sum(info["priors"].values()) == pytest.approx(1)
    assert info["input"]["bands"] == ["red", "green", "blue"]
    assert info["input"]["chip"]["size"] == tiny.CHIP
    assert info["files"] == {
        name: hashlib.sha256(data).hexdigest() for name, data in files_of(tiny_model).items() if name != MODEL
    }
    assert info["provenance"]["seed"] == 0
    assert {"torch", "peft", "torchgeo-debias"} <= set(info["provenance"]["versions"])


def test_the_adapter_opens_in_stock_peft(tiny_model: Path, tiny_package: ModelPackage, tiny_weights: Path) -> None:
    from peft import PeftModel
    from timm.layers import resample_abs_pos_embed

    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=tiny.CHIP)
    state = load_file(tiny_weights)
    side = tiny.CHIP // 16
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], (side, side), num_prefix_tokens=1)
    model.load_state_dict(state)
    stock = PeftModel.from_pretrained(model, str(tiny_model / "adapter")).eval()
    images, valid = chips()
    with torch.inference_mode():
        tokens = stock.forward_features(tiny_package.normalisation(torch.from_numpy(images)))
    upright = seen(tiny_package, 1)
    ours = PackagePredictor(upright, weights=str(tiny_weights), precision="32").features(images, valid)
    found = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1).numpy()
    assert np.allclose(found, ours, atol=1e-5)


def test_a_link_goes_on_pointing_at_the_package(tiny_package: ModelPackage, tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "one")
    (tmp_path / "link").symlink_to("one")
    replace(tiny_package, metrics={"new": 1}).save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert ModelPackage.load(tmp_path / "one").metrics == {"new": 1}


def test_the_folder_one_stands_in_will_do_if_it_is_empty(
    tiny_package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    tiny_package.save(Path("."))
    assert sorted(files_of(tmp_path / "here")) == FILES
    assert tiny.listing(tmp_path)[0] == "here"


@pytest.mark.parametrize("name", ["model", "model.tgd"])
def test_an_older_package_is_replaced_whole(tiny_package: ModelPackage, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    tiny_package.save(path)
    replace(tiny_package, raw=None, metrics={"new": 1}).save(path)
    back = ModelPackage.load(path)
    assert back.raw is None
    assert back.metrics == {"new": 1}
    assert not (path / "raw").exists()
    assert [p.name for p in tmp_path.iterdir()] == [name]


def fill(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    return path


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("notes", lambda p: p.write_text("mine")),
        ("folder", lambda p: fill(p, "mine.txt")),
        ("project", lambda p: fill(p, MODEL, "mine.txt")),  # not every model.json is ours
        ("project", lambda p: fill(p, MODEL, "src/mine.txt")),
        ("notes.tgd", lambda p: p.write_text("mine")),
        ("weights.tgd", lambda p: torch.save({"weight": torch.ones(2)}, p)),
        ("folder.tgd", lambda p: p.mkdir()),
    ],
)
def test_nothing_but_a_package_is_replaced(
    tiny_package: ModelPackage, tmp_path: Path, name: str, make: Callable[[Path], object]
) -> None:
    make(tmp_path / name)
    before = tiny.listing(tmp_path), files_of(tmp_path)
    for attempt in (check_target, tiny_package.save):
        with pytest.raises(OutputError, match="is no model package: choose another name"):
            attempt(tmp_path / name)
    assert (tiny.listing(tmp_path), files_of(tmp_path)) == before


@pytest.mark.parametrize("place", ["file.txt/model", "file.txt/deeper/model.tgd", "n" * 300])
def test_a_place_that_cannot_be_written_is_refused_before_training(
    tiny_package: ModelPackage, tmp_path: Path, place: str
) -> None:
    (tmp_path / "file.txt").write_text("mine")
    for attempt in (check_target, tiny_package.save):
        with pytest.raises(OutputError, match="choose another place"):
            attempt(tmp_path / place)
    assert tiny.listing(tmp_path) == ["file.txt"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a folder in which nobody can write")
def test_not_even_root_can_write_everywhere() -> None:
    with pytest.raises(OutputError, match="choose another place"):
        check_target(Path("/proc/model"))


@pytest.mark.parametrize("name", ["model", "model.tgd"])
def test_a_full_disk_leaves_the_older_package_alone(
    tiny_package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    tiny_package.save(path)
    before = ModelPackage.load(path).to_json()

    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for owner, call in ((Path, "write_bytes"), (zipfile.ZipFile, "writestr")):
        monkeypatch.setattr(owner, call, full)
    for target in (path, tmp_path / f"new-{name}"):
        with pytest.raises(OutputError, match="No space left on device"):
            replace(tiny_package, metrics={"new": 1}).save(target)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert ModelPackage.load(path).to_json() == before


def test_an_older_package_comes_back_if_the_last_move_fails(
    tiny_package: ModelPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    tiny_package.save(path)
    move = os.replace

    def fails_once(source: Path, target: Path) -> None:
        if Path(source).name == "made":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        move(source, target)

    monkeypatch.setattr(os, "replace", fails_once)
    with pytest.raises(OutputError, match="Cannot write the model package"):
        replace(tiny_package, metrics={"new": 1}).save(path)
    assert ModelPackage.load(path).metrics == {}
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("name", [n for n in FILES if n != MODEL])
def test_a_changed_byte_shows(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[-1] ^= 1
    (copy / name).write_bytes(data)
    refused(copy, f"the digest of {name} differs")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_shows(copy: Path, name: str) -> None:
    (copy / name).unlink()
    refused(copy, "has no model.json" if name == MODEL else "its files are not those")


@pytest.mark.parametrize("length", [0, 4, 100, 2000])
def test_truncated_tensors_show_even_where_the_digests_were_made_to_fit(copy: Path, length: int) -> None:
    path = copy / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    refused(copy, "the digest of adapter/adapter_model.safetensors differs")
    sign(copy)
    refused(copy, "is damaged")


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("head", lambda t: t.update(weight=torch.ones(2, 128)), "the head has shape"),
        ("head", lambda t: t.update(weight=torch.ones(3, 64)), "the head has shape"),
        ("head", lambda t: t.update(bias=torch.ones(2)), "the head has shape"),
        ("raw/head", lambda t: t.update(bias=torch.ones(2)), "the head has shape"),
        ("head", lambda t: t.pop("bias"), "bias"),
        ("head", lambda t: t["weight"].view(-1)[5:6].fill_(float("nan")), "weight in head.safetensors is not finite"),
        ("head", lambda t: t.update(bias=torch.full((3,), 1e300, dtype=torch.float64)), "not finite in float32"),
        ("adapter/adapter_model", lambda t: next(iter(t.values())).fill_(float("inf")), "is not finite"),
        ("adapter/adapter_model", lambda t: t.update(extra=torch.ones(1)), "no part of an adapter"),
    ],
)
def test_tensors_that_make_no_sense_are_refused(
    copy: Path, name: str, change: Callable[[dict[str, torch.Tensor]], object], part: str
) -> None:
    rewrite(copy / f"{name}.safetensors", change)
    sign(copy)
    refused(copy, part)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        (lambda i: i.update(format="other"), "does not name the format"),
        (lambda i: i.update(format_version=2), "has format version 2, this library reads 1"),
        (lambda i: i.pop("format_version"), "has format version None"),
        (lambda i: i.update(task="detection"), "is for detection"),
        (lambda i: i.pop("files"), "its files are not those"),
        (lambda i: i.update(files=[]), "its files are not those"),
        (lambda i: i.pop("classes"), "damaged"),
        (lambda i: i.update(classes=[]), "damaged"),
        (lambda i: i.update(classes={"a": 1}), "damaged"),
        (lambda i: i["classes"][0].update(group="heads"), "no group 'heads'"),
        (lambda i: i["classes"][0].update(name="water"), "damaged"),
        (lambda i: i["classes"][0].update(count="many"), "damaged"),
        (lambda i: i["classes"].pop(), "damaged"),
        (lambda i: i.update(backbone="timm:test_vit"), "damaged"),
        (lambda i: i["backbone"].update(extra=1), "damaged"),
        (lambda i: i["backbone"].update(digest=5), "damaged"),
        (lambda i: i["backbone"].update(dim="128"), "damaged"),
        (lambda i: i["input"].update(bands=["red"]), "damaged"),
        (lambda i: i["input"].update(bands=[1, 2, 3]), "damaged"),
        (lambda i: i["input"].update(dtype="bytes8x"), "damaged"),
        (lambda i: i["input"]["chip"].update(size="32"), "damaged"),
        (lambda i: i["input"]["chip"].update(size=0), "damaged"),
        (lambda i: i["input"]["chip"].update(size=4097), "Chip size must lie between 8 and 4096 pixels; received 4097"),
        (lambda i: i["input"]["chip"].update(margin=1e9), "Context margin must lie between 0 and 100"),
        (lambda i: i["classes"][0].update(count=10**30), "10000000000000000000... is too large a number"),
        (lambda i: i["provenance"].update(seed=2**64), "is too large a number"),
        (lambda i: i["input"]["normalisation"].update(std=[0, 1, 1]), "damaged"),
        (lambda i: i["input"].pop("normalisation"), "damaged"),
        (lambda i: i.update(input=None), "damaged"),
        (lambda i: i.update(provenance={}), "damaged"),
        (lambda i: i.update(method=3), "damaged"),
    ],
)
def test_a_model_json_of_another_shape_is_refused(copy: Path, change: Edit, part: str) -> None:
    edit(copy, change)
    refused(copy, part)


@pytest.mark.parametrize("number", ["1e400", "-1e999", "1" + "0" * 100, "9" * 5000])
def test_numbers_that_no_computer_takes_are_refused(copy: Path, number: str) -> None:
    edit(copy, lambda info: info["classes"][0].update(count="here"))
    (copy / MODEL).write_text((copy / MODEL).read_text().replace('"here"', number))
    refused(copy, "model.json is not JSON")


def test_no_damaged_leaf_of_an_adapter_ends_in_a_traceback(copy: Path, tiny_weights: Path) -> None:
    info, files = read_package(copy)
    name = "adapter/adapter_config.json"
    used = {key: value for key, value in json.loads(files[name]).items() if key in _LORA}
    refusals = []
    for _, config in damaged(used):
        try:
            package = ModelPackage.parse("model", info, {**files, name: json.dumps(config).encode()})
            PackagePredictor(package, weights=str(tiny_weights), precision="32").predict(*chips(1))
        except DebiasError as error:
            refusals.append(str(error))
    assert len(refusals) > 10
    assert not [text for text in refusals if "\n" in text or not text.endswith(".")]


@pytest.mark.parametrize("rank", [1, 9, 10**12, 8.5])
def test_a_lora_of_another_rank_than_its_tensors_is_refused_before_it_is_built(copy: Path, rank: float) -> None:
    path = copy / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": rank}))
    sign(copy)
    refused(copy, f"the LoRA should have the rank {rank}, but its tensors have another")


def test_no_damaged_leaf_ends_in_a_traceback(copy: Path, tiny_weights: Path) -> None:
    info, files = read_package(copy)
    refusals = []
    for change, other in damaged(info):
        try:
            package = ModelPackage.parse("model", other, files)
            assert json.loads(json.dumps(package.to_json())) is not None, change
            if change.removeprefix("no ").startswith(("backbone", "input", "classes")):
                PackagePredictor(package, weights=str(tiny_weights), precision="32").predict(*chips(1))
        except DebiasError as error:
            refusals.append(str(error))
    assert len(refusals) > 100
    assert not [text for text in refusals if "\n" in text or not text.endswith(".")]


@pytest.mark.parametrize("text", ["", "nonsense", "[1, 2]", "null", '"text"', "[" * 100_000, '{"a": NaN}', "\x80"])
def test_a_model_json_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / MODEL).write_bytes(text.encode("latin-1"))
    refused(copy, "is not JSON|does not name the format")


@pytest.mark.parametrize("text", ["[]", "5", "nonsense", "[[[]]]"])
def test_an_adapter_config_that_is_none_is_refused(copy: Path, text: str) -> None:
    (copy / "adapter/adapter_config.json").write_text(text)
    sign(copy)
    refused(copy, "damaged")


def test_a_folder_zipped_by_hand_is_a_package_too(tiny_package: ModelPackage, tiny_model: Path, tmp_path: Path) -> None:
    made = Path(shutil.make_archive(str(tmp_path / "model"), "zip", tiny_model))
    path = made.rename(tmp_path / "model.tgd")
    with zipfile.ZipFile(path) as archive:
        assert "adapter/" in archive.namelist()
    assert ModelPackage.load(path).to_json() == tiny_package.to_json()


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "adapter/../../escape", "code.py", "sub/", "head.pkl"])
def test_an_archive_with_a_foreign_file_is_refused(tiny_model: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    path = zip_of(tiny_model, tmp_path / "in" / "model.tgd", **{name: b"x"})
    refused(path, "holds the unknown file")
    assert tiny.listing(tmp_path) == ["in", "in/model.tgd"]


def test_a_foreign_file_beside_a_package_in_a_folder_is_not_read(copy: Path, tiny_package: ModelPackage) -> None:
    (copy / "notes.txt").write_text("mine")
    assert ModelPackage.load(copy).to_json() == tiny_package.to_json()


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "head.safetensors", MODEL])
def test_an_archive_without_one_of_its_files_is_refused(copy: Path, tmp_path: Path, name: str) -> None:
    (copy / name).unlink()
    refused(zip_of(copy, tmp_path / "model.tgd"), "no model.json|its files are not those")


def test_an_archive_that_claims_to_be_huge_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tgd"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("backbone.safetensors", bytes(50_000_000))
    assert path.stat().st_size < 100_000
    refused(path, "so small a file")


@pytest.mark.parametrize("at", [0.1, 0.5, 0.95])
def test_a_truncated_archive_is_refused(tiny_model: Path, tmp_path: Path, at: float) -> None:
    path = zip_of(tiny_model, tmp_path / "model.tgd")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * at)])
    refused(path, "no model package, or a damaged one")


def test_a_changed_byte_in_an_archive_shows(tiny_model: Path, tmp_path: Path) -> None:
    path = zip_of(tiny_model, tmp_path / "model.tgd")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 255
    path.write_bytes(data)
    refused(path, "damaged")


def test_an_encrypted_archive_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = zip_of(tiny_model, tmp_path / "model.tgd")
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= 1
            at = data.find(mark, at + 4)
    path.write_bytes(data)
    refused(path, "encrypted")


class Runs:
    """What a pickle would do to whoever opens it."""

    ran = False

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return setattr, (Runs, "ran", True)


@pytest.mark.parametrize("write", [lambda o, p: p.write_bytes(pickle.dumps(o)), torch.save])
def test_a_pickle_by_another_name_is_refused_and_not_run(
    tmp_path: Path, write: Callable[[object, Path], object]
) -> None:
    path = tmp_path / "model.tgd"
    write(Runs(), path)
    refused(path, "is no model package")
    assert not Runs.ran


@pytest.mark.parametrize("name", ["nowhere", "nowhere.tgd", "n" * 300, "file.txt/model"])
def test_a_package_that_is_not_there_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("mine")
    refused(tmp_path / name, "No model package at")


def test_an_empty_folder_is_no_package(tmp_path: Path) -> None:
    refused(tmp_path, "has no model.json")


def test_a_model_of_all_weights_needs_no_others(tiny_package: ModelPackage, tmp_path: Path) -> None:
    model = timm.create_model("test_vit", pretrained=False, num_classes=0, img_size=tiny.CHIP)
    nn.init.constant_(model.norm.weight, 2.0)
    whole = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    package = replace(tiny_package, model=replace(tiny_package.model, adapter=None), raw=None, finetuned=whole)
    package.save(tmp_path / "model")
    back = ModelPackage.load(tmp_path / "model")
    first = PackagePredictor(package, precision="32").features(*chips())
    torch.manual_seed(5)
    assert np.array_equal(PackagePredictor(back, precision="32").features(*chips()), first)
    fewer = {name: tensor for name, tensor in whole.items() if name != "norm.weight"}
    with pytest.raises(PackageError, match="do not fit the backbone"):
        PackagePredictor(replace(package, finetuned=fewer))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"metrics": {"new": 1}}, True),
        ({"provenance": {"seed": 9, "training_chips": 1, "versions": {}}}, True),
        ({"onnx": {ONNX: b"graph"}, "exports": {"opset": 20}}, True),
        ({"raw": None}, False),
        ({"dtype": "uint16"}, False),
        ({"bands": ("blue", "green", "red")}, False),
    ],
)
def test_the_digest_is_of_what_predictions_hang_on(
    tiny_package: ModelPackage, change: dict[str, Any], same: bool
) -> None:
    assert (replace(tiny_package, **change).digest == tiny_package.digest) == same


def test_a_model_from_before_there_were_views_keeps_its_digest(tiny_package: ModelPackage, tmp_path: Path) -> None:
    replace(tiny_package, backbone=replace(tiny_package.backbone, views=1)).save(tmp_path / "model")
    info = json.loads((tmp_path / "model" / MODEL).read_text())
    assert info["backbone"].keys() == {"name", "pool", "dim", "digest", "licence"}
    files = {name: digest for name, digest in info["files"].items() if not name.startswith("raw/model")}
    meaning = {name: info[name] for name in ("task", "backbone", "input", "classes")} | {"files": files}
    expected = hashlib.sha256(json.dumps(meaning, sort_keys=True).encode()).hexdigest()
    assert ModelPackage.load(tmp_path / "model").digest == expected
    assert tiny_package.to_json()["backbone"]["views"] == 4
