"""Tags tables as spreadsheets, annotation services and people write them: read, or refused with line and remedy."""

import csv
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from sbce_hf.config import DataConfig
from sbce_hf.data import load_images
from sbce_hf.data.start_table import write_start_table
from sbce_hf.data.tags import _LOOK_ALIKE
from sbce_hf.errors import UserError


def read(folder, content, name="tags.csv", **values):
    data = content if isinstance(content, bytes) else content.encode()
    (folder / name).write_bytes(data)
    return load_images(DataConfig(source="folder", data_dir=str(folder), **values), "train")


def tags_of(images):
    """The tags of each photo by its id."""
    named = [[images.class_names[c] for c in np.flatnonzero(row)] for row in images.label_matrix()]
    return dict(zip(images.image_ids, named, strict=True))


BOTH = {"a": ["cat", "dog"], "b": ["cat"]}


@pytest.mark.parametrize(
    "content",
    [
        'file;tags\na.jpg;"cat;dog"\nb.jpg;cat\n',
        "file\ttags\na.jpg\tcat;dog\nb.jpg\tcat\n",
        "file|tags\na.jpg|cat;dog\nb.jpg|cat\n",
        "sep=,\nfile,tags\na.jpg,cat;dog\nb.jpg,cat\n",
        'sep=;\r\nfile;tags\r\na.jpg;"cat;dog"\r\nb.jpg;cat\r\n',
        "File,Tags\na.jpg,cat;dog\nb.jpg,cat\n",
        "filename,label\na.jpg,cat;dog\nb.jpg,cat\n",
        "File Name,Labels\na.jpg,cat;dog\nb.jpg,cat\n",
        'file, tags\na.jpg, "cat;dog"\nb.jpg, "cat"\n',
        "id,label\na,cat;dog\nb,cat\n",
        "image_id,cat,dog\na,1,1\nb,1,0\n",
        "id,file,tags\n1,a.jpg,cat;dog\n2,b.jpg,cat\n",
        "file,tags\na.jpg,\"['cat', 'dog']\"\nb.jpg,['cat']\n",
        "file,tags\na.jpg,\"['cat' 'dog']\"\nb.jpg,['cat']\n",
        'file,tags\na.jpg,"[""cat"", ""dog""]"\nb.jpg,"[""cat""]"\n',
        "file,tags\na.jpg,cat\na.jpg,dog\nb.jpg,cat\n",
        "file,tags\na.jpg,cat;dog\na.jpg,cat;dog\nb.jpg,cat\n",
        "file,tags\na.jpg,cat;dog\nb.jpg,cat\n,\n,\n\n",
        "file,tags,\na.jpg,cat;dog,\nb.jpg,cat,\n",
        "filename, cat, dog\na.jpg, 1, 1\nb.jpg, 1, 0\n",
        "filename,cat,dog,split\na.jpg,True,true,train\nb.jpg,x,,train\n",
        "file,tags\nimages/a.jpg,cat ;dog\nimages\\b.jpg,cat\n",
        "file,tags\nsomewhere/else/a.jpg,cat;dog\n./b.jpg, cat \n",
        "file,tags\na.JPG,cat;dog\nb,cat\n",
        "file,tags\na.jpg,cat;;  dog\nb.jpg,cat\u00a0;\n",
    ],
)
def test_read(folder, content):
    assert tags_of(read(folder, content)) == BOTH


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"])
def test_encodings(folder, encoding):
    text = "file,tags\na.jpg,café\nb.jpg,Übung\n"
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    images = read(folder, mark + text.encode(encoding))
    assert images.class_names == ("café", "Übung")
    guessed = [note for note in images.notes if "Latin-1" in note]
    assert len(guessed) == (encoding in ("latin-1", "cp1252"))
    assert not guessed or ("tags.csv: line 2" in guessed[0] and "café" in guessed[0])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a.jpg,cat\nb.jpg,dog\n", r"line 1: no header: the first line is 'a\.jpg,cat'; put a line file,tags above"),
        ("photo_nr,animal\na.jpg,cat\n", "line 1: got the header 'photo_nr,animal', expected file,tags"),
        ("file,animal\na.jpg,cat\n", "line 2: column 'animal': got 'cat', expected 0 or 1"),
        ("file,cat,dog\na.jpg,1,0.7\n", "line 2: column 'dog': got '0.7', expected 0 or 1"),
        ("file,cat,dog\na.jpg,1,-1\n", "line 2: column 'dog': got '-1'"),
        ('file,tags\na.jpg,"cat,dog"\nb.jpg,cat\n', r"line 2: tag 'cat,dog': .*separator ','.*data\.separator=\",\""),
        ("file,tags\na.jpg,cat|dog\nb.jpg,dog\n", r"line 2: tag 'cat\|dog': .*separator '\|'"),
        ('file,tags\na.jpg,"cat,dog"\nb.jpg,"cat,cow"\n', "line 2: tag 'cat,dog': .*separator ','"),
        ("file,tags\na.jpg,cat dog\nb.jpg,cat;dog\n", "line 2: tag 'cat dog': .*separator ' '"),
        ("file,tags\na.jpg,cat and dog\nb.jpg,cat;dog\n", "line 2: tag 'cat and dog': .*separator ' and '"),
        ("file,tags\na.jpg,cat+dog\nb.jpg,cat;dog\n", r"line 2: tag 'cat\+dog': .*separator '\+'"),
        ("file,tags\na.jpg,Cat\nb.jpg,cat\n", r"line 3: tag 'cat' is also written 'Cat' .*line 2"),
        ("file,tags\na.jpg,ﬁre\nb.jpg,fire\n", "line 3: tag 'fire' is also written 'ﬁre'"),
        ("file,tags\na.jpg,c\u200bat\nb.jpg,dog\n", r"line 2: tag .*U\+200B, which has no width"),
        ("file,tags\na.jpg,cat\nb.jpg,\u202edog\n", r"line 3: tag .*U\+202E"),
        ("file,tags\na.jpg,ca\x1bt\nb.jpg,dog\n", r"line 2: tag .*control character U\+001B"),
        ('file,tags\na.jpg,c"at\nb.jpg,dog\n', 'line 2: tag .*has the quote "'),
        ("file,tags\na.jpg,'cat'\nb.jpg,dog\n", "line 2: tag .*has the quote '"),
        ("file,tags\na.jpg,cat]\nb.jpg,dog\n", r"line 2: tag .*has the bracket \]"),
        ("file,tags\na.jpg,\"('cat','dog')\"\nb.jpg,dog\n", "line 2: tag .*has quotes in parentheses"),
        ("file,tags\na.jpg,cat\nb.jpg,cat\u034f\n", r"line 3: tag .*has the sign U\+034F, which shows nothing"),
        ("file,tags\na.jpg,cat\nb.jpg,\u3164\n", r"line 3: tag .*has the sign U\+3164"),
        ("file,tags\na.jpg,cat\nb.jpg," + "x" * 201 + "\n", "line 3: tag .*has 201 characters, more than 200"),
        ("file,tags\na.jpg,[cat\nb.jpg,dog\n", "line 2: tags .*starts like a list and is none"),
        ("file,tags\na.jpg,\"['cat', 'dog' 'cow']\"\nb.jpg,dog\n", "line 2: tags .*starts like a list and is none"),
        ("file,tags\na.jpg,big cat\nb.jpg,big_cat\n", "line 3: tag 'big_cat' is also written 'big cat'"),
        (
            "file,tags\na.jpg,cat\nb.jpg,\u0441at\n",
            r"line 3: tag .*has a \(U\+0061 LATIN .* A\) and \u0441 \(U\+0441 CYRILLIC .* ES\) in one word; expected",
        ),
        ("file,tags\na.jpg,cat\nb.jpg,c\u03b1t\n", r"line 3: tag .*c \(U\+0063 LATIN .*U\+03B1 GREEK"),
        ("file,tags\na.jpg,cat\nb.jpg,a c\u043fb\n", r"line 3: tag .*U\+043F CYRILLIC"),
        (
            "file,tags\na.jpg,cop\nb.jpg,\u0441\u043e\u0440\n",
            r"line 3: tag '.*' looks like 'cop' \(.*line 2\), but for .*U\+0441 CYRILLIC.* instead of c \(U\+0063",
        ),
        ("file,tags\na.jpg,BOX\nb.jpg,\u0412\u041e\u0425\n", "line 3: tag '.*' looks like 'BOX'"),
        ("file,tags\na.jpg,Bo Xi\nb.jpg,\u0412\u043e_Xi\n", "line 3: tag '.*' looks like 'Bo Xi'"),
        ("file,tags\na.jpg,01\nb.jpg,1\n", "line 3: tag '1' is also written '01'"),
        ("file,tags\na.jpg,1.0\nb.jpg,1\n", "line 3: tag '1' is also written '1.0'"),
        ('file,tags\na.jpg,"cat\nb.jpg,dog\n', "line 2: a quote opens in this row and is not closed"),
        ('file,tags\na.jpg,"cat\nb.jpg,dog"\n', "line 2: tag .*has a line end; is a quote missing"),
        ('file,tags\n"a.jpg,cat\nb.jpg",dog\n', "line 2: a quote opens in this row and takes the following lines in"),
        ('file,tags\na.jpg,"cat" x\n', "line 2: "),
        ('file,tags\na.jpg,cat\nb.jpg,"' + "x" * 140_000 + '"\n', "line 3: a quote opens"),
        ("file,tags,tags\na.jpg,cat,dog\n", "line 1: two columns are named 'tags'"),
        ("file,tags,Labels\na.jpg,cat,dog\n", "line 1: more than one column may be the tags: tags, Labels"),
        ("file,path,tags\na.jpg,a.jpg,dog\n", "line 1: more than one column may be the file: file, path"),
        ("file,tags\na.jpg,background;cat\nb.jpg,cat\n", "line 2: tag 'background': is the name of label 0"),
        ("file,tags\na.jpg,Background\nb.jpg,cat\n", "line 2: tag 'Background'"),
        ("file,tags\na.jpg,cat,dog\nb.jpg,cat\n", "line 2: expected 2 fields .* got 3; separate tags by ;"),
        (
            "file;tags\na.jpg;cat;dog\nb.jpg;cat\n",
            r"line 2: expected 2 fields .*separate tags by \| and set data\.sep",
        ),
        (
            "file,tags\nx/a.jpg,cat\ny/a.jpg,dog\nb.jpg,cat\n",
            r"line 3: 'y/a\.jpg' and 'x/a\.jpg' would both be a\.jpg",
        ),
        (b"file,tags\na.jpg,ca\0t\n", "line 2: has a NUL byte"),
        (b"\xff\xfefile,tags\na", "starts as UTF-16 and is none"),
    ],
)
def test_refused_with_the_line_and_the_remedy(folder, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(folder, content)
    assert "tags.csv" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("sign", ["\u3001", "\uff64", "\uff0c", "\uff1b", "\uff5c", "\u060c"])
def test_signs_of_other_scripts_between_tags(folder, sign):
    content = f"file,tags\na.jpg,\u732b{sign}\u72ac\nb.jpg,\u732b\n"
    with pytest.raises(UserError, match=f"line 2: tag .* is a tag elsewhere; did you mean the separator '{sign}'"):
        read(folder, content)
    assert tags_of(read(folder, content, separator=sign)) == {"a": ["\u72ac", "\u732b"], "b": ["\u732b"]}
    # By itself it may be part of a name.
    assert len(read(folder, f"file,tags\na.jpg,\u732b{sign}\u72ac\nb.jpg,\u9ce5\n").class_names) == 2


def test_remedies_work(folder):
    assert tags_of(read(folder, 'file,tags\na.jpg,"cat,dog"\nb.jpg,cat\n', separator=",")) == BOTH
    assert tags_of(read(folder, "file,tags\na.jpg,cat dog\nb.jpg,cat\n", separator=" ")) == BOTH
    assert tags_of(read(folder, "file;tags\na.jpg;cat|dog\nb.jpg;cat\n", separator="|")) == BOTH
    assert tags_of(read(folder, "file,tags\na.jpg,cat and dog\nb.jpg,cat\n", separator=" and ")) == BOTH
    # One tag with a comma in it, said in either of the two ways that the message names.
    one = 'file,tags\na.jpg,"cat, wild"\nb.jpg,cat\n'
    assert read(folder, one, separator=";").class_names == ("cat", "cat, wild")
    assert read(folder, one, classes=("cat", "cat, wild")).class_names == ("cat", "cat, wild")
    # No part of it is used elsewhere: a name like those of well-known lists of classes.
    assert "tench, Tinca tinca" in read(folder, 'file,tags\na.jpg,"tench, Tinca tinca"\nb.jpg,cat\n').class_names


def test_one_word_in_two_forms_is_one_class(folder):
    composed, apart = unicodedata.normalize("NFC", "café"), unicodedata.normalize("NFD", "café")
    images = read(folder, f"file,tags\na.jpg,{composed} bar\nb.jpg,{apart}\u00a0  bar\n")
    assert images.class_names == ("café bar",)


def test_how_an_emoji_is_shown_makes_no_other_class(folder):
    assert tags_of(read(folder, "file,tags\na.jpg,\u2764\ufe0f\nb.jpg,\u2764\n")) == {"a": ["\u2764"], "b": ["\u2764"]}


def test_files_in_another_unicode_form_are_found(folder):
    composed, apart = unicodedata.normalize("NFC", "café.jpg"), unicodedata.normalize("NFD", "café.jpg")
    (folder / "images" / "a.jpg").rename(folder / "images" / apart)
    images = read(folder, f"file,tags\n{composed},cat\nb.jpg,dog\n")
    assert len(images) == 2 and images.image(0).size == (8, 6)
    assert not [note for note in images.notes if "found" in note]


def test_what_was_guessed_about_names_is_said(folder):
    notes = read(folder, "file,tags\na.JPG,cat\nb,dog\n").notes
    assert "1 files were found with other capital letters than in tags.csv: 'a.JPG' is a.jpg" in notes
    assert any("by a name without ending" in note for note in notes)
    (folder / "images" / "A.jpg").write_bytes((folder / "images" / "a.jpg").read_bytes())
    with pytest.raises(UserError, match=r"line 2: file 'a\.JPG' may be A\.jpg or a\.jpg; write the folder"):
        read(folder, "file,tags\na.JPG,cat\nb.jpg,dog\n")


def test_a_table_that_is_a_link_to_elsewhere_is_not_shown(folder, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret"
    secret.write_text("file,tags\na.jpg,password\nb.jpg,\n")
    (folder / "tags.csv").symlink_to(secret)
    config = DataConfig(source="folder", data_dir=str(folder))
    with pytest.raises(UserError, match="expected a file inside of") as caught:
        load_images(config, "train")
    assert "password" not in str(caught.value)
    assert load_images(replace(config, outside_files=True), "train").class_names == ("password",)


def test_an_empty_split_is_listed(folder):
    images = read(folder, "file,tags,split\na.jpg,cat,train\nb.jpg,cat,\n")
    assert images.image_ids == ["a"]
    (skipped,) = images.skipped
    assert skipped.file.endswith("b.jpg") and "its split is empty" in skipped.reason and "line 3" in skipped.reason


def test_numbers_are_in_their_order_and_masks_hold_them(folder):
    (folder / "masks").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "images" / "c.jpg")
    for name, value in (("a", 1), ("b", 2), ("c", 10)):
        Image.fromarray(np.full((6, 8), value, np.uint8)).save(folder / "masks" / f"{name}.png")
    images = read(folder, "file,tags\na.jpg,1\nb.jpg,2\nc.jpg,10\n", score_split="train")
    assert images.class_names == ("1", "2", "10")
    assert [np.unique(images.mask(index)).tolist() for index in range(3)] == [[1], [2], [3]]
    assert images.notes == ("the tags are numbers, so masks are read as holding these numbers",)


def test_an_imagefolders_table_is_cleaned_as_well(folder):
    for name in ("c", "d"):
        Image.new("RGB", (8, 6)).save(folder / "images" / f"{name}.jpg")
    table = 'file_name,tags\na.jpg,cat;dog\nb.jpg,""\nc.jpg,"cat "\nd.jpg,dog\n'
    images = read(folder / "images", table, "metadata.csv")
    assert tags_of(images) == {"a": ["cat", "dog"], "b": [], "c": ["cat"], "d": ["dog"]}


@pytest.mark.parametrize("name", ["tags.csv", "metadata.jsonl"])
def test_more_classes_than_a_label_map_holds(folder, name):
    tags = [f"class {number}" for number in range(300)]
    content = "file,tags\na.jpg," + ";".join(tags) + "\nb.jpg,\n"
    if name.endswith("jsonl"):
        content = '{"file_name": "a.jpg", "tags": ' + str(tags).replace("'", '"') + "}\n"
    with pytest.raises(UserError, match="got 300 classes, expected at most 254"):
        read(folder, content, name)


def test_what_is_no_formula_in_our_tables_keeps_its_name(folder):
    names, classes = ["=1+1.jpg", "'-a;b.jpg", "@x.jpg", "a.jpg", "b.jpg"], ["+1", "-", "=cmd"]
    for name in names[:3]:
        Image.new("RGB", (8, 6), (200, 30, 60)).save(folder / "images" / name)
    table, count, _ = write_start_table(folder, classes)
    text = table.read_text(encoding="utf-8-sig")
    cells = [cell for row in csv.reader(text.splitlines()) for cell in row]
    assert count == len(names) and not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    marked = text.replace('"",""', '"1","1"')
    assert tags_of(read(folder, marked)) == {name.removesuffix(".jpg"): classes[:2] for name in names}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("\u043a\u043e\u0442", "kot"),  # Cyrillic and Polish; in small letters they do not look alike
        ("\u03b2-cell", "5 \u03bcm"),
        ("cat \u043a\u043e\u0442", "dog \u03ba"),
        ("\u732bcat", "\u30cd\u30b3"),
        ("stra\u00dfe", "caf\u00e9"),
    ],
)
def test_honest_words_of_several_scripts(folder, first, second):
    found = tags_of(read(folder, f"file,tags\na.jpg,{first}\nb.jpg,{second}\n", separator=";"))
    assert found == {"a": [first], "b": [second]}


def test_each_letter_that_looks_latin_is_of_another_script():
    for letter, latin in _LOOK_ALIKE.items():
        assert unicodedata.name(chr(letter)).startswith(("CYRILLIC", "GREEK")) and chr(latin).isascii()
        case = str.isupper if chr(latin).isupper() else str.islower
        assert case(chr(letter)) and case(chr(latin))
