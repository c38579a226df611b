"""Labelled images: every form of input, odd pixels, and what is wrong with bad ones."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from toolkit.data.images import decode, list_images, read_images
from toolkit.errors import InputError


@pytest.fixture
def picture():
    return np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path, picture):
    """Two classes of six images."""
    root = tmp_path / "pets"
    for name in ("cat", "dog"):
        (root / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(picture).save(root / name / f"{number}.png")
    return root


def test_colour_modes_become_rgb(tmp_path, picture):
    cases = {
        "rgb.png": Image.fromarray(picture),
        "grey.png": Image.fromarray(picture[..., 0]),
        "palette.png": Image.fromarray(picture).quantize(8),
        "cmyk.jpg": Image.fromarray(picture).convert("CMYK"),
        "tiny.png": Image.fromarray(picture[:1, :1]),
    }
    for name, image in cases.items():
        image.save(tmp_path / name)
        found = decode(tmp_path / name)
        assert found.dtype == np.uint8
        assert found.shape == (*image.size[::-1], 3)
    np.testing.assert_array_equal(decode(tmp_path / "rgb.png"), picture)
    np.testing.assert_array_equal(decode(tmp_path / "grey.png"), np.repeat(picture[..., :1], 3, axis=2))


def test_sixteen_bits_are_scaled_and_transparency_is_white(tmp_path, picture):
    deep = picture[..., 0].astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "deep.png")
    np.testing.assert_array_equal(decode(tmp_path / "deep.png")[..., 0], picture[..., 0])
    clear = np.dstack((picture, np.zeros(picture.shape[:2], np.uint8)))
    Image.fromarray(clear).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png") == 255).all()


@pytest.mark.filterwarnings("error")
def test_what_is_no_number_is_black(tmp_path):
    values = np.full((4, 4), 255, np.float32)
    values[0, 0] = np.nan
    Image.fromarray(values).save(tmp_path / "float.tif")
    found = decode(tmp_path / "float.tif")
    assert found[0, 0].tolist() == [0, 0, 0]
    assert (found[1:] == 255).all()


@pytest.mark.filterwarnings("error")
def test_a_large_image_is_used_without_a_warning_and_a_line_of_pixels_is_not(tmp_path, picture, monkeypatch):
    Image.fromarray(picture).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", picture[..., 0].size - 1)
    assert decode(tmp_path / "large.png").shape == picture.shape
    monkeypatch.undo()
    Image.new("RGB", (1, 1001)).save(tmp_path / "line.png")
    with pytest.raises(InputError, match=r"line\.png is too narrow: 1 by 1001 pixels"):
        decode(tmp_path / "line.png")


def test_photographs_stand_upright(tmp_path, picture):
    image = Image.fromarray(picture)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to see it
    image.save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(decode(tmp_path / "turned.png"), np.rot90(picture, -1))


def test_what_cannot_be_decoded(tmp_path, picture):
    path = tmp_path / "cut.png"
    Image.fromarray(picture).save(path)
    path.write_bytes(path.read_bytes()[:120])
    (tmp_path / "text.jpg").write_text("no image")
    for name, message in (("cut.png", "cut.png is damaged"), ("text.jpg", "is no image"), ("absent.png", "does not")):
        with pytest.raises(InputError, match=message):
            decode(tmp_path / name)


def test_a_huge_image_is_refused(tmp_path, picture, monkeypatch):
    Image.fromarray(picture).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    with pytest.raises(InputError, match="huge.png is too large"):
        decode(tmp_path / "huge.png")


def test_a_folder_of_classes(folder):
    found = read_images(folder)
    assert found.classes == ("cat", "dog")
    assert found.summary() == {"classes": 2, "images": {"train": 12}}
    held = found.with_holdout(0.2, 0.2)
    assert {split: len(samples) for split, samples in held.splits.items()} == {"train": 8, "test": 2, "val": 2}
    again = read_images(folder).with_holdout(0.2, 0.2)
    assert list(held.splits["test"].names) == list(again.splits["test"].names)
    names = [name for samples in held.splits.values() for name in samples.names]
    assert len(set(names)) == 12
    assert all(sorted(samples.labels.tolist())[-1] == 1 for samples in held.splits.values())


def test_a_folder_with_splits_keeps_them(folder, tmp_path):
    for split in ("train", "valid", "test"):
        (tmp_path / "own" / split).mkdir(parents=True)
        for name in ("cat", "dog"):
            (folder / name).rename(tmp_path / "own" / split / name) if split == "train" else None
    (tmp_path / "own" / "test" / "dog").mkdir()
    (tmp_path / "own" / "test" / "dog" / "a.png").write_bytes((tmp_path / "own/train/dog/0.png").read_bytes())
    found = read_images(tmp_path / "own")
    assert found.summary()["images"] == {"train": 12, "val": 0, "test": 1}
    assert found.splits["test"].labels.tolist() == [1]


def test_a_table_of_paths(folder):
    rows = [
        {"file": f"{name}/{n}.png", "class": name, "split": "test" if n == 5 else "train"}
        for name in ("cat", "dog")
        for n in range(6)
    ]
    table = folder / "pets.csv"
    pd.DataFrame(rows).to_csv(table, index=False)
    found = read_images(table)
    assert found.classes == ("cat", "dog")
    assert found.summary()["images"] == {"train": 10, "test": 2}
    with pytest.raises(InputError, match="no column 'kind', only file, class, split"):
        read_images(table, label="kind")
    pd.DataFrame([*rows, {"file": "cat/99.png", "class": "cat", "split": "train"}]).to_csv(table, index=False)
    with pytest.raises(InputError, match=r"row 14 names .*99.png, which does not exist"):
        read_images(table)


def test_numbers_as_classes_are_ordered_by_value(folder):
    rows = [{"image": f"cat/{n}.png", "label": label} for n, label in enumerate((10, 9, 2, 10, 9, 2))]
    pd.DataFrame(rows).to_csv(folder / "numbers.csv", index=False)
    found = read_images(folder / "numbers.csv")
    assert found.classes == ("2", "9", "10")
    assert found.splits["train"].labels.tolist() == [2, 1, 0, 2, 1, 0]


@pytest.mark.parametrize("named", [True, False])
def test_parquet_with_image_bytes(folder, tmp_path, named):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    encoded = [{"bytes": path.read_bytes(), "path": path.name} for path in list_images(folder)]
    table = pyarrow.table({"img": encoded, "label": [0] * 6 + [1] * 6})
    features = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    if named:
        table = table.replace_schema_metadata({"huggingface": json.dumps(features)})
    (tmp_path / "hub").mkdir()
    parquet.write_table(table, tmp_path / "hub" / "train-00000.parquet")
    parquet.write_table(table.slice(5, 2), tmp_path / "hub" / "test.parquet")
    found = read_images(tmp_path / "hub")
    assert found.classes == (("cat", "dog") if named else ("0", "1"))
    assert found.splits["test"].labels.tolist() == [0, 1]
    assert found.splits["train"].image(0).shape == (12, 9, 3)


def test_bad_folders(folder, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        read_images(tmp_path / "nowhere")
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no image"):
        read_images(folder)
    (tmp_path / "flat").mkdir()
    with pytest.raises(InputError, match="no sub-folder per class"):
        read_images(tmp_path / "flat")


def test_unreadable_images_are_left_out_by_name(folder):
    (folder / "cat" / "3.png").write_bytes(b"broken")
    found = read_images(folder).without_unreadable()
    assert found.summary() == {"classes": 2, "images": {"train": 11}, "skipped": 1}
    assert found.skipped[0].endswith("3.png")


def test_a_split_without_images_is_refused(tmp_path, picture):
    (tmp_path / "one" / "cat").mkdir(parents=True)
    Image.fromarray(picture).save(tmp_path / "one" / "cat" / "0.png")
    with pytest.raises(InputError, match="one has no test images"):
        read_images(tmp_path / "one").with_holdout(0.1, 0.2)
