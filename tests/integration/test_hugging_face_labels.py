"""What a network of Hugging Face calls its labels, and makes of pictures, is what the data did."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hugging_face import BERT, VIT, transformers
from typer.testing import CliRunner

from lowdimfa.data import image_folder, table
from lowdimfa.errors import InputError
from lowdimfa.services.cli.app import app
from lowdimfa.services.run.described import described
from lowdimfa.services.run.notes import notes
from lowdimfa.services.run.plan import make_run_plan
from lowdimfa.services.spec import Specification, parse_specification
from lowdimfa.services.trainer.api import DecoupledTrainer

NAMED = {"id2label": {"0": "positive", "1": "negative"}, "label2id": {"positive": 0, "negative": 1}}


def plain(args: dict[str, Any], task: str, data: dict[str, Any], **train: Any) -> dict[str, Any]:
    model = {"factory": "lowdimfa.models:hugging_face", "args": args | {"task": task}, "blocks": 2}
    return {"model": model, "data": data, "train": {"steps": 1, "batch_size": 4} | train}


def planned(*given: Any, **train: Any) -> Any:
    specification: Specification = parse_specification(plain(*given, **train), "test")
    return make_run_plan(specification)


def exported(tmp_path: Path, given: dict[str, Any]) -> tuple[Path, str]:
    DecoupledTrainer(given, engine="local", run_dir=tmp_path / "run").fit()
    arguments = ["export", str(tmp_path / "run"), "--format", "hugging-face", "--output"]
    outcome = CliRunner().invoke(app, [*arguments, str(tmp_path / "folder")])
    assert outcome.exit_code == 0, outcome.output
    return tmp_path / "folder", outcome.output


@pytest.fixture
def reviews(tmp_path: Path) -> dict[str, Any]:
    file = tmp_path / "reviews.jsonl"
    rows = [{"ids": [i % 40, 1, 2], "label": ("positive", "negative")[i % 2]} for i in range(20)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    args = {"path": str(file), "inputs": {"input_ids": "ids"}, "target": "label"}
    return {"factory": "lowdimfa.data:table", "args": args}


def test_labels_in_another_order_than_classes_are_refused(reviews: dict[str, Any]) -> None:
    given = {"config": BERT | NAMED}, "sequence-classification"
    with pytest.raises(InputError) as caught:
        planned(*given, reviews)
    assert "the labels 0 positive, 1 negative of the network" in caught.value.message
    assert "the classes 0 negative, 1 positive of the data" in caught.value.message
    order = {"classes": ["positive", "negative"]}
    assert "data.args.classes: ['positive', 'negative']" in caught.value.message
    assert planned(*given, reviews | {"args": reviews["args"] | order}).dataset.classes == (
        "positive",
        "negative",
    )
    upper = {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "label2id": {"NEGATIVE": 0, "POSITIVE": 1}}
    planned({"config": BERT | upper}, "sequence-classification", reviews)
    others = {"id2label": {"0": "ham", "1": "spam"}, "label2id": {"ham": 0, "spam": 1}}
    told = [
        note for note in notes(planned({"config": BERT | others}, *given[1:], reviews)) if "export" in note
    ]
    assert told == [
        "the network's labels are 0 ham, 1 spam, and the data's classes 0 negative, 1 positive: an export calls them as "
        "the data do"
    ]
    mixed = {"id2label": {"0": "positive", "1": "spam"}, "label2id": {"positive": 0, "spam": 1}}
    with pytest.raises(InputError, match="from_pretrained takes id2label"):
        planned({"config": BERT | mixed}, "sequence-classification", reviews)


@pytest.mark.parametrize(
    "own", [{}, {"id2label": {"0": "ham", "1": "spam"}, "label2id": {"ham": 0, "spam": 1}}]
)
def test_an_export_has_the_names_of_the_data(
    own: dict[str, Any], reviews: dict[str, Any], tmp_path: Path
) -> None:
    folder, _ = exported(tmp_path, plain({"config": BERT | own}, "sequence-classification", reviews))
    config = transformers.AutoConfig.from_pretrained(folder)
    assert config.id2label == {0: "negative", 1: "positive"}
    assert config.label2id == {"negative": 0, "positive": 1}
    transformers.AutoModelForSequenceClassification.from_pretrained(folder)


def test_classes_of_a_table_are_numbered_as_they_are_given(reviews: dict[str, Any]) -> None:
    args = reviews["args"]
    rows = table(**args, classes=["positive", "negative"], test=0.5, seed=1)
    assert set(rows.train.targets(torch.arange(10)).tolist()) == {0, 1}
    usual = table(**args, test=0.5, seed=1)
    for split, other in ((rows.train, usual.train), (rows.test, usual.test)):
        every = torch.arange(len(split))
        assert torch.equal(split.targets(every), 1 - other.targets(every))
    with pytest.raises(InputError, match="the class 'negative'; expected those of 'classes', positive"):
        table(**args, classes=["positive"])
    for wrong in (["positive", False], ["positive", "positive"]):
        with pytest.raises(InputError, match=r"table: classes: .*expected a different text for each class"):
            table(**args, classes=wrong)


def test_classes_that_a_table_numbers_itself_keep_their_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for name, names in (("train", ["yes", "no"]), ("test", ["no", "yes"])):
        features = datasets.Features(
            {"x": datasets.Value("float32"), "label": datasets.ClassLabel(names=names)}
        )
        rows = datasets.Dataset.from_dict({"x": [0.0, 1.0], "label": [0, 1]}, features=features)
        rows.save_to_disk(str(tmp_path / name))
    train, test = str(tmp_path / "train"), str(tmp_path / "test")
    assert table(train, "x", test=0.5).classes == ("yes", "no")
    for other in ({"classes": ["no", "yes"]}, {"test": test}):
        with pytest.raises(InputError, match="classes that are numbered already"):
            table(train, "x", **{"test": 0.5} | other)


def test_classes_of_a_data_set_of_ones_own_may_be_numbers(reviews: dict[str, Any]) -> None:
    data = replace(table(**reviews["args"]), classes=(0, 1))  # type: ignore[arg-type]
    assert described(data)["classes"] == ["0", "1"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for name, shade in (("cat", 40), ("dog", 90)):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(6):
            pixels = torch.randint(shade, shade + 20, (12, 9, 3), generator=generator, dtype=torch.uint8)
            image.fromarray(pixels.numpy()).save(tmp_path / "pets" / name / f"{number}.png")
    return tmp_path / "pets"


def test_an_export_makes_of_pictures_what_training_did(pictures: Path, tmp_path: Path) -> None:
    """The folder's own mean and deviation are not those by which it was trained."""

    vit = transformers.CONFIG_MAPPING["vit"].from_dict(VIT | {"num_labels": 2})
    transformers.ViTForImageClassification(vit).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    data = {"factory": "lowdimfa.data:image_folder", "args": {"path": str(pictures), "size": 8}}
    folder, output = exported(tmp_path, plain({"path": str(tmp_path / "vit")}, "image-classification", data))
    assert "preprocessor_config.json has size, mean and std of the data" in output
    assert transformers.AutoConfig.from_pretrained(folder).id2label == {0: "cat", 1: "dog"}
    same_inputs(folder, pictures, grey=False)


@pytest.mark.parametrize("grey", [False, True])
def test_a_network_of_a_configuration_gets_a_processor(grey: bool, pictures: Path, tmp_path: Path) -> None:
    config = VIT | {"num_labels": 2, "num_channels": 1 if grey else 3}
    data = {"factory": "lowdimfa.data:image_folder", "args": {"path": str(pictures), "size": 8, "grey": grey}}
    folder, output = exported(tmp_path, plain({"config": config}, "image-classification", data))
    assert "preprocessor_config.json" in output
    same_inputs(folder, pictures, grey)


def same_inputs(folder: Path, pictures: Path, grey: bool) -> None:
    from PIL import Image

    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    items: Any = image_folder(str(pictures), 8, grey=grey).train
    for path, _ in items.split.items.files:
        opened = Image.open(path)
        found = processor(opened.convert("L") if grey else opened, return_tensors="pt")["pixel_values"][0]
        images = items.split.items
        # Crops differ by parts of a pixel.
        expected = (images.pixels(path) - images.mean) / images.std
        torch.testing.assert_close(found, expected, rtol=0, atol=0.3)


def test_folders_are_numbered_as_they_are_given(pictures: Path) -> None:
    data: Any = image_folder(str(pictures), 8, classes=["dog", "cat"])
    assert data.classes == ("dog", "cat")
    assert all((path.parent.name == "cat") == number for path, number in data.train.split.items.files)
    with pytest.raises(InputError, match="image_folder: classes: found cat; expected the folders cat, dog"):
        image_folder(str(pictures), 8, classes=["cat"])
