"""Class lists: some folders of a larger data set."""

from pathlib import Path

import pytest

from normrepro.data import DataError
from normrepro.data.class_list import class_names
from tests.batches import joined
from tests.photos import folder, make_photos


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return make_photos(tmp_path_factory.mktemp("photos"))


def test_a_class_list_takes_some_folders_of_a_larger_set(photos, tmp_path):
    (tmp_path / "two.txt").write_text("# comment\ncat  Felis catus\nape\n\n")
    for wanted in (["cat", "ape"], str(tmp_path / "two.txt")):
        data = folder(photos, class_list=wanted)
        assert data.class_names == ["ape", "cat"]
        assert (data.classes, data.train_size, data.val_size) == (2, 14, 6)
        _, labels = joined(data.eval_batches())
        assert labels.tolist() == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (["ape", "dog"], r"1 of the 2 classes of data\.source\.class_list have no folder.*: dog"),
        (["ape", "ape"], r"ape more than once"),
        ([], r"names no class"),
        ("nowhere.txt", r"class_list=nowhere\.txt is neither a file nor .* \(imagenet100\)"),
        ("imagenet100", r"100 of the 100 classes"),
    ],
)
def test_a_class_list_that_does_not_fit_is_refused(photos, wanted, says):
    with pytest.raises(DataError, match=says):
        folder(photos, class_list=wanted)


def test_the_shipped_list_is_the_first_hundred_of_imagenets_classes():
    import timm

    synsets = Path(timm.__file__).parent / "data/_info/imagenet_synsets.txt"
    assert class_names("imagenet100") == sorted(synsets.read_text().split())[:100]
