import numpy as np

from sbce_hf.evaluation.tag_counts import count_tags, histogram, tag_concerns

NAMES = ("cat", "dog", "cow", "sky")


def labels(*photos):
    """A matrix of the given photos, each a text of class initials, repeated ten times."""
    return np.array([[name[:2] in photo for name in NAMES] for photo in photos] * 10, np.float32)


def test_counts_and_histogram():
    counts = count_tags(labels("ca", "ca do", ""), NAMES)
    assert counts == {"cat": 20, "dog": 10, "cow": 0, "sky": 0}
    lines = histogram(counts, 30).splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["cat", "20"], ["dog", "10"], ["cow", "0"], ["sky", "0"], ["in", "all"],
    ]  # fmt: skip
    assert lines[-1].endswith("30 photos")


def test_nothing_to_say():
    assert tag_concerns(labels("ca", "do", "co", "sk", "ca do"), NAMES) == []


def test_classes_that_are_always_together_cannot_be_told_apart():
    (found,) = tag_concerns(labels("ca", "do", "co sk", "ca do"), NAMES)
    assert found.startswith("cow and sky: always on the same photos")
    # Sky without a cow is enough.
    assert tag_concerns(labels("ca", "do", "co sk", "sk"), NAMES) == []


def test_on_every_photo_on_few_and_on_none():
    many = labels("ca sk", "do sk", "sk")
    many[0, 2] = 1
    assert [line.split(":")[0] for line in tag_concerns(many, NAMES)] == ["cow", "sky"]
    many[:, 1] = 0
    assert "dog: no photo has this tag" in tag_concerns(many, NAMES)


def test_words_for_no_tag_are_told():
    found = tag_concerns(np.eye(2, dtype=np.float32).repeat(9, axis=0), ("NaN", "cat"))
    assert found == ["NaN: many programs write this for no tag; empty those cells if so"]


def test_photos_that_are_not_tagged_yet_come_first():
    half = labels("ca", "do", "co", "sk", *[""] * 4)
    assert tag_concerns(half, NAMES) == [
        "40 of 80 photos have no tags: they are learned as showing none of the classes. Leave rows out that are not "
        "tagged yet"
    ]
    # A few that show none of the classes are as they should be.
    assert not tag_concerns(labels(*["ca", "do", "co", "sk"] * 3, ""), NAMES)
