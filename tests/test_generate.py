"""The program that asks a model: what it writes, where it draws, and how it refuses."""

import signal
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from currreft_jax import generate as program
from currreft_jax.data.answer_boxes import answer_boxes, draw_answer_boxes
from currreft_jax.data.visualize import GREEN, ORANGE
from currreft_jax.sampling import console
from currreft_jax.structs import Frame, Reason, Rollout
from currreft_jax.world.demo import EASY_SCENE, demo_question, demo_row, demo_scene, demo_verdict
from currreft_jax.world.scenes import FRAME, render_image
from tests import tiny


def rollouts(texts: list[bytes], limit: int, ended: list[bool]):
    """The texts as they grow byte by byte, token = byte."""
    for drawn in range(1, limit + 1):
        lengths = np.array([[min(drawn, len(text)) for text in texts]])
        mask = np.arange(limit) < lengths[..., None]
        tokens = np.array([[list(text[:limit].ljust(limit, b"~")) for text in texts]])
        over = np.array([[end and drawn >= len(text) for text, end in zip(texts, ended, strict=True)]])
        yield Rollout(tokens, mask, np.zeros(mask.shape), np.zeros(mask.shape), lengths, over)


def as_text(tokens: np.ndarray) -> str:
    return bytes(tokens.tolist()).decode("utf-8", "replace")


def test_one_answer_is_written_as_it_grows_and_no_character_before_it_is_whole(capsys):
    shown = []
    texts = ["a é!".encode()]

    def watched():
        for rollout in rollouts(texts, 8, [True]):
            yield rollout
            shown.append(capsys.readouterr().out)

    assert console.print_completions(watched(), as_text, 8) == ["a é!"]
    assert shown == ["a", " ", "", "é", "!\n", "", "", ""]


def test_several_answers_wait_for_each_other_and_cut_ones_are_marked(capsys):
    console.print_completions(rollouts([b"long one", b"short", b"cut off"], 7, [False, True, False]), as_text, 7)
    assert capsys.readouterr().out == (
        "--- 1 of 3\nlong on [cut off: raise --max-new-tokens]\n--- 2 of 3\nshort\n"
        "--- 3 of 3\ncut off [cut off: raise --max-new-tokens]\n"
    )


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ("<think>x</think><answer>[10, 20, 30, 40]</answer>", [[20, 10, 60, 20]]),
        ('[{"bbox_2d": [0, 0, 1, 2]}, [4, 4, 4, 9]]', [[0, 0, 2, 1]]),
        ("It is at [10, 20, 30, 40].", [[20, 10, 60, 20]]),
        ("[]", np.empty((0, 4))),
    ],
)
def test_boxes_are_moved_to_the_images_own_frame(text, boxes):
    np.testing.assert_allclose(answer_boxes(text, Frame(100, 200), Frame(200, 100)), np.array(boxes, float))


def test_a_text_without_boxes_has_a_reason():
    assert answer_boxes("no box", Frame(100, 200), Frame(200, 100)) is Reason.BAD_JSON


def test_the_boxes_of_the_demo_are_drawn_on_an_enlarged_scene_and_judged_as_in_training(tmp_path):
    row, scene = demo_row(0), render_image(demo_scene(0))
    assert row.solution == "[34, 36, 50, 54]" and len(demo_scene().objects) == 2
    answer = "<think>x</think><answer>[2, 2, 20, 20]</answer>"
    said = draw_answer_boxes(scene, answer, FRAME, FRAME, tmp_path / "out.png", row=row, scale=6)
    assert said.endswith("out.png with 1 box of the answer in orange; the right one is green")
    enlarged = np.asarray(scene).repeat(6, axis=0).repeat(6, axis=1)
    with Image.open(tmp_path / "out.png") as drawn:
        pixels = np.asarray(drawn)
    assert (pixels[260, 260:270] == enlarged[260, 260:270]).all() and (pixels[20, 200] == enlarged[20, 200]).all()
    assert tuple(pixels[216, 250]) == GREEN and tuple(pixels[12, 60]) == ORANGE  # 36 x 6, 2 x 6
    assert demo_verdict(row, answer, FRAME) == "wrong (iou_below)"
    assert demo_verdict(row, "<think>x</think><answer>[34, 36, 50, 55]</answer>", FRAME) == "right"
    said = [draw_answer_boxes(scene, "a star", FRAME, FRAME, tmp_path / "out.png", row=one) for one in (row, None)]
    assert said[0].endswith("out.png; the answer names no box (bad_json); the right one is green")
    assert said[1].endswith("out.png; the answer names no box")
    with pytest.raises(ValueError, match="--demo=-1: scenes are numbered from 0"):
        demo_scene(-1)


@pytest.mark.slow
def test_an_image_is_asked_about_and_drawn_on(checkpoint, tmp_path, capsys, monkeypatch):
    tiny.picture(90, 60).save(tmp_path / "in.png")
    arguments = [f"--model={checkpoint}", f"--image={tmp_path / 'in.png'}", "--prompt=where?", "--max-new-tokens=6"]
    assert program.main(arguments) == 0
    greedy = capsys.readouterr().out
    assert program.main(arguments) == 0
    assert capsys.readouterr().out == greedy
    monkeypatch.setattr(console, "print_completions", lambda *arguments: ["[28, 28, 56, 56]"])
    assert program.main([*arguments, f"--boxes={tmp_path / 'out.png'}"]) == 0
    assert "with 1 box" in capsys.readouterr().err
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (90, 60)
        changed = np.argwhere(np.any(np.asarray(drawn) != np.asarray(tiny.picture(90, 60)), axis=-1))
    (top, left), (bottom, right) = changed.min(0), changed.max(0)
    assert abs(left - 30) <= 2 and abs(top - 30) <= 2 and abs(right - 60) <= 2 and abs(bottom - 59) <= 2


def test_a_folder_of_two_dtypes_is_loaded_in_the_one_that_is_named(tmp_path, capsys):
    folder = tmp_path / "mixed"
    tiny.write_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].astype(ml_dtypes.bfloat16)
    save_file(weights, folder / "model.safetensors")
    arguments = [f"--model={folder}", "--prompt=x", "--max-new-tokens=1"]
    assert program.main(arguments) == 1
    assert "mixes bfloat16, float32: choose one with --dtype" in capsys.readouterr().err
    assert program.main([*arguments, "--dtype=bfloat16"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to answer: give --prompt, or --demo"),
        (["--model=x", "--image=a.png"], "nothing to answer: give --prompt, or --demo"),
        (["--prompt=x", "--boxes=out.png"], "--boxes draws on an image: give one with --image"),
        (["--prompt=x", "--image=a.png", "--boxes=out.gif"], "name a .png, .jpg or .webp file"),
        (["--prompt=x", "--model=/nowhere"], "/nowhere is neither a folder nor the id of a model"),
        (["--prompt=x", "--temperature=-1"], "sampling.temperature is -1.0"),
        (["--prompt=x", "--max-new-tokens=0"], "sampling.max_new_tokens is 0; it takes 1 or more"),
        (["--prompt=x", "--seed=-1"], "--seed=-1: it takes 0 to 2147483647"),
        (["--prompt=x", "--samples=0"], "sampling.group_size is 0; it takes 1 or more"),
    ],
)
def test_refusals_name_what_is_wrong_and_the_remedy(arguments, message, capsys):
    assert program.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_a_stage_that_is_not_trained_yet_is_told_from_a_misspelt_model(tmp_path, capsys):
    (tmp_path / "demo/stage1/checkpoints").mkdir(parents=True)
    assert program.main(["--prompt=x", f"--model={tmp_path}/demo/stage2"]) == 1
    assert f"the run in {tmp_path}/demo may not have come to it" in capsys.readouterr().err


def test_an_unreadable_image_is_named(checkpoint, tmp_path, capsys):
    (tmp_path / "no.png").write_text("text")
    assert program.main([f"--model={checkpoint}", f"--image={tmp_path / 'no.png'}", "--prompt=x"]) == 1
    assert f"{tmp_path / 'no.png'}: not a readable image" in capsys.readouterr().err
    assert program.main([f"--image={tmp_path / 'not.png'}", "--prompt=x"]) == 1
    assert f"there is no file {tmp_path / 'not.png'}; nearest: {tmp_path / 'no.png'}\n" in capsys.readouterr().err


def test_the_demo_needs_no_other_argument_and_shows_question_and_picture(tmp_path, capsys, monkeypatch):
    def print_completions(*arguments):
        handlers.append(signal.getsignal(signal.SIGINT))
        return printed(*arguments)

    handlers, printed = [], console.print_completions
    monkeypatch.setattr(console, "print_completions", print_completions)
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest-xdist's workers may ignore SIGINT
    assert program.main(["--demo"]) == 0
    assert (handlers, signal.signal(signal.SIGINT, before)) == ([signal.SIG_DFL], signal.default_int_handler)
    said = capsys.readouterr()
    assert said.out.startswith("<think> ")
    assert f"scene {EASY_SCENE}, an easy one; --demo N asks about another: {demo_question()}\n" in said.err
    verdict = demo_verdict(demo_row(), said.out, FRAME)
    assert f"the right answer: {demo_row().solution}; by the reward of training the model's is {verdict}\n" in said.err
    assert "wrote runs/generate-demo.png with 1 box of the answer in orange; the right one is green" in said.err
    assert "before training the small model answers at once" in said.err and "drawn scenes" not in said.err
    monkeypatch.setattr(console, "print_completions", lambda *_: ["<answer> [0, 0, 1, 1] </answer>"] * 2)
    assert program.main(["--demo", "--samples=2"]) == 0
    assert "by the reward of training the last answer is wrong (iou_below)" in capsys.readouterr().err
    monkeypatch.setattr(console, "print_completions", printed)
    demo_scene_image = render_image(demo_scene())
    with Image.open("runs/generate-demo.png") as drawn:
        assert drawn.size == (504, 504)
    demo_scene_image.save("scene.png")
    assert program.main(["--image=scene.png"]) == 0
    said = capsys.readouterr()
    assert demo_scene().objects[0].pair[0] in said.out and "knows drawn scenes of coloured shapes only" in said.err
    assert (
        "name one, such as --model=Qwen/Qwen2.5-VL-3B-Instruct" in said.err and len(list(Path("runs").iterdir())) == 1
    )


def test_a_missing_base_is_an_error_with_the_remedy(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(program.base, "_CHECKPOINT", tmp_path)
    assert program.main(["--prompt=x"]) == 1
    assert "holds no checkpoint: `make base`" in (error := capsys.readouterr().err) and "give --model" in error
