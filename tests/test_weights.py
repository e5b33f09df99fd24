"""The weights that ship: file, card and record say the same, and the file does what the card says."""
import hashlib
import json
from pathlib import Path

import pytest
import torch

from robustnb.images import sample
from robustnb.lab.records import Store
from robustnb.models import create
from robustnb.opening import ModelError, open_model
from robustnb.weights import FOLDER, shipped, weights_file

CARDS = list(shipped().items())


@pytest.mark.parametrize("names, card", CARDS, ids=["-".join(names) for names, _ in CARDS])
def test_file_card_and_record_agree(names, card):
    content = weights_file(*names).read_bytes()
    record, = [r for r in Store("results").records("weights") if r.key == card["record"]]
    assert hashlib.sha256(content).hexdigest() == card["sha256"] == record.metrics["sha256"]
    assert {k: card[k] for k in ("clean", "corrupted", "n", "bytes")} == {
        k: record.metrics[k] for k in ("clean", "corrupted", "n", "bytes")
    }
    assert len(content) == card["bytes"] and not record.dirty


@pytest.mark.parametrize("names, card", CARDS, ids=["-".join(names) for names, _ in CARDS])
def test_a_network_is_as_good_as_its_card(names, card):
    images = sample(card.get("data", names[1]), "test")
    right = (create(names[0], weights=names[1]).eval()(images.float()).argmax(1) == images.y).float().mean().item()
    spread = (card["clean"] * (1 - card["clean"]) / len(images)) ** 0.5
    assert abs(right - card["clean"]) < 4 * spread + 1 / len(images)


def test_nothing_else_lies_in_the_folder():
    assert {p.name for p in FOLDER.iterdir()} == {
        f"{net}-{name}{end}" for net, name in shipped() for end in (".json", ".safetensors")
    }


def test_evaluate_takes_the_weights_of_the_data_set():
    data = sample("mnist", "test")
    by_name, by_data = open_model("lenet5", data, "mnist"), create("lenet5", weights="mnist").eval()
    with torch.inference_mode(): assert torch.equal(by_name(data.float()), by_data(data.float()))
    with pytest.raises(ModelError, match="lenet5 comes with weights for mnist, not for pictures; give a file"):
        open_model("lenet5", type(data)(data.x, data.y, data.classes, "pictures"))
    with pytest.raises(ModelError, match="cnn8 comes without weights"): open_model("cnn8", sample("cifar10", "test"))


def test_the_page_of_weights_shows_all_that_ship():
    cells = json.loads((Path(__file__).parents[1] / "nbs" / "23b_weights.ipynb").read_text())["cells"]
    shown = " ".join(str(output.get("data")) for cell in cells for output in cell.get("outputs", ()))
    assert [card["record"] for card in shipped().values() if card["record"] not in shown] == []
