"""Suites: rows on demand, all problems at once, and blank or shuffled images."""

import numpy as np
import pytest

from currreft_jax.config import ImageCondition, Kind, Rewards, Source, Suite, Task
from currreft_jax.evaluation.suites import GREY, SuiteError, SuiteQuestion, load_suites, refuse_unscorable_rows
from currreft_jax.structs import Row
from tests.evaluation.suites import evaluation_of, write_rows


def test_rows_are_read_in_the_order_of_the_files(tmp_path):
    files = [write_rows(tmp_path, "one", 3), write_rows(tmp_path, "two", 4, images=0)]
    evaluation = evaluation_of(files[:1])
    evaluation.suites[0].sources.append(Source(str(files[1]), sample="first:2"))
    (suite,), _ = load_suites(evaluation)
    assert suite.ids == ("one-0", "one-1", "one-2", "two-0", "two-1")
    assert len(suite) == 5
    questions = suite.questions(2, 9, ImageCondition.ORIGINAL)
    assert [question.row.id for question in questions] == ["one-2", "two-0", "two-1"]
    assert [question.location for question in questions] == [f"{files[0]}:3", f"{files[1]}:1", f"{files[1]}:2"]
    assert (questions[0].row.frame.width, questions[0].row.frame.height) == (40, 30)
    assert questions[0].image and not questions[1].image


def test_the_key_of_an_image_is_that_of_its_pixels(tmp_path):
    files = [write_rows(tmp_path / "a", "one", 2), write_rows(tmp_path / "b", "two", 2)]
    suites, _ = load_suites(evaluation_of(files))
    one, two = ([question.image for question in suite.questions(0, 2, ImageCondition.ORIGINAL)] for suite in suites)
    assert one == two and one[0] != one[1]


def test_the_key_of_several_images_is_that_of_all_in_their_order():
    row = Row("a", Task.MATH, Kind.OPEN, "?", "1")
    keys = [(), ("a",), ("b",), ("a", "b"), ("b", "a"), ("a", "c")]
    images = [SuiteQuestion(row, "", of_row, ()).image for of_row in keys]
    assert images[:3] == ["", "a", "b"] and len(set(images)) == len(keys)


def test_all_missing_and_damaged_images_of_all_suites_are_told_at_once(tmp_path):
    files = [write_rows(tmp_path, "one", 3, images=3), write_rows(tmp_path, "two", 2)]
    for name in ("one-0.png", "one-2.png", "two-1.png"):
        (tmp_path / name).unlink()
    (tmp_path / "two-0.png").write_bytes(b"no image")
    with pytest.raises(SuiteError, match="4 images of the suites cannot be used") as error:
        load_suites(evaluation_of(files))
    lines = str(error.value).splitlines()[1:]
    places = [f"{files[0]}:1", f"{files[0]}:3", f"{files[1]}:1", f"{files[1]}:2"]
    assert [line.strip().rpartition(": ")[0].partition(": ")[0] for line in lines] == places
    assert sum("is missing" in line for line in lines) == 3


def test_two_rows_of_one_id_are_refused(tmp_path):
    file = write_rows(tmp_path, "one", 2)
    evaluation = evaluation_of([file])
    evaluation.suites[0].sources.append(Source(str(file)))
    with pytest.raises(SuiteError, match=rf"{file}:1 has the id 'one-0' of .*{file}:1"):
        load_suites(evaluation)


def test_rows_that_no_rule_scores_are_refused_by_file_and_line(tmp_path):
    file = write_rows(tmp_path, "one", 2, images=0, kind="judge")
    (suite,), _ = load_suites(evaluation_of([file]))
    with pytest.raises(SuiteError, match="2 rows cannot be scored") as error:
        refuse_unscorable_rows(suite, Rewards(), None)
    assert f"{file}:2: solution '1' is no gold answer" in str(error.value)
    other = write_rows(tmp_path, "other", 3, images=0, task="other")
    (suite,), _ = load_suites(evaluation_of([other]))
    with pytest.raises(SuiteError, match=rf"3 rows cannot be scored:\n  {other}:1: no rule scores open .* \(3 rows\)$"):
        refuse_unscorable_rows(suite, Rewards(), None)


def test_blank_images_are_grey_and_of_the_same_size(tmp_path):
    (suite,), _ = load_suites(evaluation_of([write_rows(tmp_path, "one", 2)]))
    own, blank = (suite.question(1, images) for images in (ImageCondition.ORIGINAL, ImageCondition.BLANK))
    assert blank.row == own.row and blank.image == own.image
    pixels = np.asarray(blank.images[0].open())
    assert pixels.shape == np.asarray(own.images[0].open()).shape == (30, 41, 3)
    assert np.array_equal(pixels, np.broadcast_to(GREY, pixels.shape))


def test_shuffled_images_are_those_of_other_rows_in_the_own_size(tmp_path):
    (suite,), _ = load_suites(evaluation_of([write_rows(tmp_path, "one", 8, images=4)]))
    suite.conditions([ImageCondition.SHUFFLED])
    own, shuffled = (suite.questions(0, 8, images) for images in (ImageCondition.ORIGINAL, ImageCondition.SHUFFLED))
    pairs = {question.images[0].path: other.images[0].path for question, other in zip(own, shuffled, strict=True)}
    assert sorted(pairs.values()) == sorted(pairs) and all(path != other for path, other in pairs.items())
    assert [other.image for other in shuffled] == [question.image for question in own]
    assert [other.images[0].open().size for other in shuffled] == [question.images[0].open().size for question in own]


def test_one_image_cannot_be_shuffled_and_copies_of_it_are_one(tmp_path):
    file = write_rows(tmp_path, "one", 2)
    (tmp_path / "one-1.png").write_bytes((tmp_path / "one-0.png").read_bytes())
    (suite,), _ = load_suites(evaluation_of([file]))
    with pytest.raises(SuiteError, match="one image only"):
        suite.conditions([ImageCondition.SHUFFLED])


def test_a_suite_without_images_is_answered_once(tmp_path):
    files = [write_rows(tmp_path, "one", 2, images=0), write_rows(tmp_path, "two", 2)]
    (texts, pictures), _ = load_suites(evaluation_of(files))
    wanted = [ImageCondition.ORIGINAL, ImageCondition.BLANK]
    assert texts.conditions(wanted) == [ImageCondition.ORIGINAL]
    assert pictures.conditions(wanted) == wanted


def test_a_suites_name_is_that_of_its_first_file():
    assert Suite(sources=[Source("rows/in-math.jsonl"), Source("b.jsonl")]).name == "in-math"
