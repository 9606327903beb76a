"""Whatever is in a file, it is read to a valid value, or one line says what is wrong with which file.

`scripts/fuzz.py` goes on where this stops, with the same readers.
"""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mutations import mutated
from readers import READERS, Hang, Reader, folder_of, peak_memory, quiet, run_case

# What all cases of a reader may take together, in bytes.
MEMORY = 400 * 2**20


@pytest.fixture(scope="module", autouse=True)
def _quiet():
    with quiet():
        yield


@pytest.mark.parametrize("name", READERS)
def test_every_input_is_read_or_refused_in_one_line(name, tmp_path):
    reader, folder = READERS[name], folder_of(name, tmp_path)
    reader.prepare(folder)
    # Valid files have been read.
    before, outcomes = peak_memory(), set()

    @settings(
        max_examples=reader.cases,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=False))
    def check(random):
        outcomes.add(reader.case(folder, random))

    check()
    assert "refused" in outcomes
    assert peak_memory() - before < MEMORY


def test_a_case_is_repeated_by_its_number(tmp_path):
    folder = folder_of("info.json", tmp_path)
    READERS["info.json"].prepare(folder)
    outcomes = [run_case("info.json", folder, 0, number) for number in range(40)]
    assert [run_case("info.json", folder, 0, number) for number in range(40)] == outcomes
    assert set(outcomes) == {"read", "refused"}


@given(
    st.binary(max_size=60), st.sampled_from(["json", "jsonl", "csv", "png", "xml", "safetensors", "bin"]), st.randoms()
)
def test_anything_can_be_spoiled(data, ending, random):
    assert isinstance(mutated(data, f"a.{ending}", random), bytes)


def bad_reader(tmp_path, read):
    reader = Reader(lambda folder: (folder / "a.txt").write_text("a b c d"), read, ["*.txt"], ("a.txt",))
    reader._cache[tmp_path] = {tmp_path / "a.txt": b"a b c d"}
    return lambda random: reader.case(tmp_path, random)


def raises(error):
    def read(folder):
        raise error

    return read


def test_what_a_reader_must_not_do_is_noticed(tmp_path, monkeypatch):
    from random import Random

    from sbce_hf.errors import UserError

    assert bad_reader(tmp_path, raises(UserError("a.txt: wrong")))(Random(0)) == "refused"
    for error in (KeyError("a.txt"), MemoryError("a.txt"), AssertionError(), UserError("something is wrong")):
        with pytest.raises((KeyError, MemoryError, AssertionError)):
            bad_reader(tmp_path, raises(error))(Random(0))
    monkeypatch.setattr("readers.PATIENCE", 0.1)
    with pytest.raises(Hang):
        bad_reader(tmp_path, lambda folder: [None for _ in iter(int, 1)])(Random(0))
