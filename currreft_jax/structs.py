"""Data structures that modules exchange: frozen dataclasses whose array types name their axes.

| axis | meaning |
|---|---|
| P | prompts of a batch (over all hosts); one whose group is split over data shards counts once for each part |
| L | length of the prompts, padded on the right |
| G | completions of a prompt: its group, or its part of one |
| T | length of the completions, padded on the right |
| D | hidden size of the decoder |
| H, K | query heads, key/value heads |
| V | vocabulary |
| N | data shards of the mesh; a prompt and its images are on the same shard |
| S, C | image slots of a shard, patches of a slot |
| values | channels * patch², of one patch |

Array types give dtype and axes; `tests/test_shapes.py` checks them against a real batch. They cost nothing at run time.
The module loads no JAX: arrays are NumPy's on the host and JAX's on the device. `sharding` registers the pytrees.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from currreft_jax.config import Kind, Task

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Float32, Int32, UInt8, UInt32

Array = Any  # NumPy's on the host, JAX's on the device

PADDING = -1  # in an array of indices or ids
MAX_REASON = 40  # characters of a reason of one's own


@dataclass(frozen=True, slots=True)
class Frame:
    """The pixel frame of coordinates.

    Attributes:
        width: pixels along x.
        height: pixels along y.
    """

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class ImagePatches:
    """One image, resized and split into patches.

    Attributes:
        patches: values of a patch are ordered (channel, y, x); patches are in merge-unit order.
        grid: number of patches along (y, x).
        original: frame of the file.
        resized: frame that the model sees.
    """

    patches: UInt8[np.ndarray, "patches values"]
    grid: tuple[int, int]
    original: Frame
    resized: Frame


@dataclass(frozen=True, slots=True)
class Prompt:
    """One tokenised prompt, unpadded.

    Attributes:
        tokens: an image has one placeholder token for each of its merged units.
        positions: (time, y, x) position of each token.
        next_position: position of the first completion token, the same on all three axes.
        images: images in the order of their placeholders.
        name: name of the prompt in error messages.
        key: 64 bits that seed the prompt's completions; see `data.packing.row_key`.
        first_sample: number of its first completion within the group; not 0 where it stands for a part of the group.
        content: number of its tokens and images; a stream reads prompts of one number once. None for a prompt that is
            read by itself.
    """

    tokens: Int32[np.ndarray, " L"]
    positions: Int32[np.ndarray, "3 L"]
    next_position: int
    images: tuple[ImagePatches, ...]
    name: str
    key: int = 0
    first_sample: int = 0
    content: int | None = None


class TokenSampling(NamedTuple):
    """How tokens are sampled where each prompt has settings of its own: numbers of one prompt, or arrays of P prompts.

    Attributes:
        temperature: divides the logits; 0 samples greedily, whatever the others are.
        top_k: samples from the k likeliest tokens; 0 for all.
        top_p: samples from the fewest likeliest tokens with this total probability; 1 for all.
    """

    temperature: Float32[Array, " P"] | float
    top_k: Int32[Array, " P"] | int
    top_p: Float32[Array, " P"] | float


@dataclass(frozen=True, slots=True)
class PackedImages:
    """The images of a batch: whole attention windows packed into slots, each image in consecutive slots.

    Attributes:
        patches: values as in `ImagePatches`.
        coordinates: (y, x) of a patch in the grid of its image.
        window_id: attention window of a patch, numbered within its slot; -1 for padding.
        image_id: image of a patch, numbered within its shard; -1 for padding.
        max_slots_per_image: bound on the slots of an image; static, like the shapes.
    """

    patches: UInt8[Array, "N S C values"]
    coordinates: Int32[Array, "N S C 2"]
    window_id: Int32[Array, "N S C"]
    image_id: Int32[Array, "N S C"]
    max_slots_per_image: int


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """Prompts padded to one static shape.

    Attributes:
        tokens: padded on the right.
        lengths: lengths of the prompts.
        positions: (time, y, x) position of each token.
        next_position: position of the first completion token.
        key: high and low half of each prompt's key.
        first_sample: number of a prompt's first completion within its group.
        embed_index: index of a placeholder's feature among the merged units of its shard; -1 for text.
        images: None for a batch without images.
    """

    tokens: Int32[Array, "P L"]
    lengths: Int32[Array, " P"]
    positions: Int32[Array, "P 3 L"]
    next_position: Int32[Array, " P"]
    key: UInt32[Array, "P 2"]
    first_sample: Int32[Array, " P"]
    embed_index: Int32[Array, "P L"]
    images: PackedImages | None


@dataclass(frozen=True, slots=True)
class GroupBatch:
    """Prompts and their completions in one static shape.

    Attributes:
        prompts: P prompts.
        tokens: the completions, padded on the right.
    """

    prompts: PromptBatch
    tokens: Int32[Array, "P G T"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """The prefilled prompts, shared by the completions of each group.

    Attributes:
        keys: keys of every layer, after RoPE.
        values: values of every layer.
        lengths: lengths of the prompts.
        next_position: position of the first completion token.
        last_hidden: hidden state of the last prompt token after the final norm; predicts the first token.
    """

    keys: Float[Array, "layers P L K head"]
    values: Float[Array, "layers P L K head"]
    lengths: Int32[Array, " P"]
    next_position: Int32[Array, " P"]
    last_hidden: Float[Array, "P D"]


@dataclass(frozen=True, slots=True)
class Rollout:
    """The completions of a batch of prompts.

    Attributes:
        tokens: padded on the right.
        mask: true up to and including a completion's first stop token.
        logprobs: log-probs of the sampled tokens, before top-k and top-p; 0 after the end.
        entropies: entropies of the distributions that the tokens were sampled from, in nats; 0 after the end.
        lengths: number of tokens, with the stop token.
        finished: false where the token limit cut the completion off.
    """

    tokens: Int32[Array, "P G T"]
    mask: Bool[Array, "P G T"]
    logprobs: Float32[Array, "P G T"]
    entropies: Float32[Array, "P G T"]
    lengths: Int32[Array, "P G"]
    finished: Bool[Array, "P G"]


@dataclass(frozen=True, slots=True)
class GrpoTargets:
    """Constants of the GRPO loss for the completions of a `GroupBatch`.

    Attributes:
        advantages: advantages of the completions.
        old_logprobs: as the sampler reported them.
        ref_logprobs: log-probs of the frozen reference; None without a KL penalty.
    """

    advantages: Float32[Array, "P G"]
    old_logprobs: Float32[Array, "P G T"]
    ref_logprobs: Float32[Array, "P G T"] | None


@dataclass(frozen=True, slots=True)
class Boxes:
    """Boxes and the frame they are measured in.

    Attributes:
        corners: float64 `[n, 4]`, (x1, y1, x2, y2) in pixels, 0-based and half-open.
        frame: None if the size of the image is unknown.
    """

    corners: np.ndarray
    frame: Frame | None


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: system, user or assistant.
        text: each `<image>` marks the row's next image.
    """

    role: str
    text: str


@dataclass(frozen=True, slots=True)
class Row:
    """One question with its gold answer.

    Attributes:
        id: names the row in error messages, and seeds its completions.
        task: subject of the question.
        kind: format of the answer.
        problem: the question, without the prompt's instructions. `{box:0}`, in it, an option or a message, is replaced
            by the first of `boxes`, in the frame that the model sees.
        solution: the gold answer, bare or inside `<answer>` tags; boxes in pixels of `frame`, `[]` for nothing to find.
        images: paths.
        options: texts of a choice row's options, lettered A, B, C and so on; empty if only the problem lists them.
        multiple: whether a choice row may have several right options.
        frame: frame of the boxes in `solution` and `boxes`; of 1 x 1 if they are fractions of the image.
        boxes: (x1, y1, x2, y2) of boxes in the texts, in pixels of `frame`, 0-based and half-open.
        messages: the conversation of a chat row, which has neither problem nor solution.
        source: name of the data set.
        split: split of the data set.
        origin: licence and publication of the data set.
        extra: keys that the schema does not know, with their JSON values; for rewards of one's own. A row's hash leaves
            them out.
    """

    id: str
    task: Task
    kind: Kind
    problem: str
    solution: str
    images: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    multiple: bool = False
    frame: Frame | None = None
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    messages: tuple[Turn, ...] = ()
    source: str = ""
    split: str = ""
    origin: str = ""
    extra: Mapping[str, Any] = field(default_factory=dict, hash=False)


@dataclass(frozen=True, slots=True)
class Completion:
    """One answer of the model.

    Attributes:
        text: without the end token.
        num_tokens: None if unknown.
        finished: False if the token limit cut it off.
    """

    text: str
    num_tokens: int | None = None
    finished: bool = True


class Reason(StrEnum):
    """Reason for a reward of zero, or below the maximum.

    | reason | meaning |
    |---|---|
    | truncated | the token limit cut the completion off |
    | no_answer_tag | no closed `<answer>` element |
    | several_answers | more than one, or several expressions where one was asked for |
    | empty_answer | nothing in it |
    | bad_layout | something before, between or after thoughts and answer, or no thoughts |
    | not_yes_or_no | neither word, or more than one word |
    | not_letters | something other than option letters |
    | several_options | several letters where one was asked for |
    | unknown_option | a letter that the row does not offer |
    | bad_json | not JSON, or neither a box nor a list of boxes or labels |
    | degenerate_box | no box has an area |
    | iou_below | the boxes overlap too little |
    | extra_boxes | right boxes among too many others, or any box where there is nothing to find |
    | no_boxes | the empty list, where there is something to find |
    | labels_differ | the sets of labels are not equal |
    | not_equal | another answer than the gold one |
    | unparsable | math-verify cannot read it |
    | timeout | beyond a limit of time, memory, length or nesting |
    | too_long, repeats | a penalty |
    | unrewarded | for rewards of one's own, which may also give words of their own |
    | reward_failed | a reward of one's own failed, and `Rewards.on_error` is `zero` |
    """

    TRUNCATED = "truncated"
    NO_ANSWER_TAG = "no_answer_tag"
    SEVERAL_ANSWERS = "several_answers"
    EMPTY_ANSWER = "empty_answer"
    BAD_LAYOUT = "bad_layout"
    NOT_YES_OR_NO = "not_yes_or_no"
    NOT_LETTERS = "not_letters"
    SEVERAL_OPTIONS = "several_options"
    UNKNOWN_OPTION = "unknown_option"
    BAD_JSON = "bad_json"
    DEGENERATE_BOX = "degenerate_box"
    IOU_BELOW = "iou_below"
    EXTRA_BOXES = "extra_boxes"
    NO_BOXES = "no_boxes"
    LABELS_DIFFER = "labels_differ"
    NOT_EQUAL = "not_equal"
    UNPARSABLE = "unparsable"
    TIMEOUT = "timeout"
    TOO_LONG = "too_long"
    REPEATS = "repeats"
    UNREWARDED = "unrewarded"
    REWARD_FAILED = "reward_failed"


@dataclass(frozen=True, slots=True)
class Verdict:
    """One reward of one completion.

    Attributes:
        value: within the reward's declared range.
        reason: a `Reason`, or up to `MAX_REASON` characters of one's own, by which completions are counted. Never None
            for a value of 0 that could have been more.
    """

    value: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class RewardFailure:
    """A completion for which a reward function failed, or returned an invalid verdict.

    Attributes:
        reward: name of the reward.
        location: file and line of the function; empty if unknown.
        problem: what went wrong.
        message: names these, the row and the completion.
    """

    reward: str
    location: str
    problem: str
    message: str


@dataclass(frozen=True, slots=True)
class Scores:
    """The rewards of a batch of completions.

    Attributes:
        total: float64 `[P, G]`, the weighted sum of the parts that are not NaN.
        parts: name -> float64 `[P, G]`, unweighted; NaN where the reward does not apply to the row.
        reasons: name -> object `[P, G]`, the reason as a string, or None.
        failures: the reward functions' failures, each of which counts as 0 (`Rewards.on_error`).
    """

    total: np.ndarray
    parts: dict[str, np.ndarray]
    reasons: dict[str, np.ndarray]
    failures: tuple[RewardFailure, ...] = ()
