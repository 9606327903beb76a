from sbce_hf.evaluation.odd_photos import OddPhoto, odd_photos
from sbce_hf.evaluation.quality import stage_quality
from sbce_hf.evaluation.scores import ScoreRow
from sbce_hf.evaluation.verdict import verdict

NAMES = ("cat", "dog")


def record(name, **shares):
    present = [index for index, known in enumerate(NAMES) if known in shares]
    return {"image_id": name, "classes": present, "proportions": [shares[NAMES[index]] for index in present]}


USUAL = [record(f"i{number}", cat=0.2, dog=0.1) for number in range(9)]


def test_lost_tags_come_first_then_the_most_unusual_extent():
    found = odd_photos(
        NAMES,
        [
            *USUAL,
            record("flood", cat=0.96),
            record("speck", cat=0.002),
            record("one", cat=0.2, dog=0.0),
            record("two", cat=0.0, dog=0.0),
            record("none"),
            # Half as much as usual is nothing.
            record("small", cat=0.1),
        ],
        count=10,
    )
    assert [photo.image_id for photo in found] == ["two", "one", "speck", "flood"]
    assert found[0].reasons == ("no pixel of its tag cat", "no pixel of its tag dog")
    assert found[2].reasons == ("cat covers 0.2 % of it, where 20.0 % of a photo is usual",)


def test_no_more_than_are_asked_for_and_equals_by_name():
    lost = [record(name, cat=0.0) for name in "cab"]
    assert odd_photos(NAMES, [*USUAL, *lost], count=2) == [
        OddPhoto(name, ("no pixel of its tag cat",)) for name in "ab"
    ]


def test_of_a_class_on_a_few_photos_nothing_is_usual():
    assert odd_photos(NAMES, [record("a", cat=0.9), record("b", cat=0.01)], count=5) == []


def test_photos_without_background_where_others_have_some():
    large = [record(f"l{number}", cat=0.5) for number in range(9)]
    (found,) = odd_photos(NAMES, [*large, record("whole", cat=0.97)], count=5)
    assert found == OddPhoto("whole", ("97.0 % of it is foreground",))
    # Of close-ups it is usual.
    assert odd_photos(NAMES, [record(f"c{number}", cat=0.96) for number in range(9)], count=5) == []


def row(stage, value, leak=False):
    return ScoreRow(stage, "peak 0.35", True, value, {}, 10, leak)


def test_the_verdict_counts_tags_and_takes_the_last_honest_score_of_the_stage():
    final = stage_quality("round_1", NAMES, [*USUAL, record("lost", cat=0.3, dog=0.0)])
    assert verdict(
        final, [row("bce", 0.9), row("round_1", 0.4), row("round_1", 0.5), row("round_1", 0.7, True)], 2
    ) == [
        "10 photos have a label map, made by round_1; 2 could not be read.",
        "1 of 20 tags (5.0 %) have no pixel.",
        "Against the masks of 10 photos: mIoU 50.0 %. No mask was used to make them.",
    ]
    assert verdict(stage_quality("irn", NAMES, USUAL)) == [
        "9 photos have a label map, made by irn.",
        "Every one of 18 tags has pixels.",
    ]
