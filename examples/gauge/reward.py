"""The reward of the gauge task."""

from currreft_jax.structs import Completion, Frame, Reason, Row, Verdict


def within_tolerance(row: Row, completion: Completion, answer: str | None, frame: Frame | None) -> Verdict:
    """Returns 1 for a number that differs from the gold reading by no more than the row's tolerance, else 0."""
    if answer is None:
        return Verdict(0.0, Reason.NO_ANSWER_TAG)
    try:
        error = abs(float(answer) - float(row.solution))
    except ValueError:
        return Verdict(0.0, "not a number")
    if error <= float(row.extra["tolerance"]):  # false for "nan"
        return Verdict(1.0)
    return Verdict(0.0, "out of tolerance")
