"""Impossible and contradictory figures of published tables: by hand, and those of the paper."""

import pytest

from currreft_jax.evaluation.check_table import check_table, find_faults, format_faults
from currreft_jax.evaluation.figures import AUTHORS_README, PAPER, Fault, read_figures

HEADER = "table,model,metric,value,unit,rows,step,relation\n"

# The faults of the paper by table, metric and value, and those of the authors' README: all, and no others.
PAPER_FAULTS = {
    Fault.CONFLICT: """
        Table 2: detection in: 31.8 | Table 2: math in: 71.3 | Table 2: math out: 17.8 | Table 2: classify out: 79.8
        Table 4a: classify in: 65.4 | Table 4b: OCRBench: 63.70 | Table 4b: LLaVABench GPT4: 83.60
        Table 4b: AI2D: 0.71 | Section 4.5: MMVet: 36.78 | Section 4.5: MathVista: 92.2""",
    Fault.IMPOSSIBLE: """
        Table 2: math out: 30.3 | Table 2: math out: 34.9 | Table 2: math out: 26.7 | Table 2: math out: 29.1
        Table 2: math out: 36.7 | Table 2: math out: 45.1 | Table 2: math out: 59.9 | Table 2: math out: 73.7
        Table 2: math out: 81.5 | Table 4a: math out: 74.1 | Table 3 or 4b: OCRBench: 60.05
        Table 3 or 4b: OCRBench: 64.12 | Table 3 or 4b: MMVet: 30.11 | Table 3: MMVet: 35.56
        Section 4.5: MMVet: 36.78 | Table 3 or 4b: MATH: 29.10 | Table 3 or 4b: MATH: 20.70
        Table 3 or 4b: MATH: 33.10 | Table 3 or 4b: MATH: 27.10
        README: AI2D: 80.01 | README: AI2D: 65.42 | README: MMBench: 69.27""",
    Fault.PADDED: "Table 3 or 4b: MMVet: 22.30 | Table 3 or 4b: MMVet: 31.20 | Table 3 or 4b: MMVet: 30.20",
    Fault.RELATION: "Table 3: AI2D: 0.82 | "
    + " | ".join(
        f"Table 3: LLaVABench Relative: {relative}"
        for relative in (67.3, 59.5, 60.2, 81.2, 72.1, 78.1, 80.2, 73.8, 83.6)
    ),
}


def messages(tmp_path, *lines: str) -> list[str]:
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "".join(f"{line}\n" for line in lines))
    return [str(fault).removeprefix(f"{path}:") for fault in check_table(path)]


def test_the_papers_faults_are_found_and_no_others():
    found = {kind: set() for kind in Fault}
    for path in (PAPER, AUTHORS_README):
        for fault in check_table(path):
            found[fault.fault].add(f"{fault.figure.table}: {fault.figure.metric}: {fault.figure.text}")
    expected = {
        kind: {entry.strip() for line in text.splitlines() for entry in line.split("|") if entry.strip()}
        for kind, text in PAPER_FAULTS.items()
    }
    assert found == expected


@pytest.mark.parametrize("path", [PAPER, AUTHORS_README], ids=lambda path: path.stem)
def test_the_shipped_figures_are_marked_with_their_faults(path):
    figures = read_figures(path)
    faults = find_faults(figures)
    disputed = {(one.figure.model, one.figure.metric) for one in faults if one.fault == Fault.CONFLICT}
    found = {(one.figure.line, one.fault) for one in faults}
    found |= {(one.line, Fault.CONFLICT) for one in figures if (one.model, one.metric) in disputed}
    marked = {(one.line, fault) for one in figures for fault in one.faults}
    assert marked == found


def test_a_share_of_the_rows_is_possible_and_another_is_not(tmp_path):
    assert messages(tmp_path, "T,m,a,30.2,,500,,", "T,m,b,0.74,fraction,3088,,", "T,m,c,597,score,1000,,") == []
    assert messages(tmp_path, "T,m,a,30.3,percent,500,,") == [
        "2: value: T, m, a: 30.3 is no percentage of 500 rows; the nearest: 30.2 and 30.4"
    ]
    assert messages(tmp_path, "T,m,a,0.35,fraction,10,,")[0].endswith("the nearest: 0.30 and 0.40")
    assert messages(tmp_path, "T,m,a,59.5,score,100,,")[0].endswith(
        "59.5 is no sum of 100 rows; the nearest: 59.0 and 60.0"
    )
    assert messages(tmp_path, "T,m,a,250.0,percent,10,,")[0].endswith("the nearest: 100.0")
    assert messages(tmp_path, "T,m,a,30.3,percent,,,") == []  # of an unknown number of rows


def test_a_third_is_possible_however_it_is_rounded(tmp_path):
    assert messages(tmp_path, "T,m,a,33.3,,3,,", "T,m,b,33.33,,3,,", "T,m,c,66.67,,3,,", "T,m,d,12.5,,80,,") == []
    assert messages(tmp_path, "T,m,a,0.13,fraction,8,,", "T,m,b,0.12,fraction,8,,") == []  # 1/8, half way
    assert len(messages(tmp_path, "T,m,a,33.34,,3,,")) == 1


def test_scores_in_tenths_give_finer_figures(tmp_path):
    assert messages(tmp_path, "T,m,a,36.74,,218,0.1,") == []
    assert len(messages(tmp_path, "T,m,a,36.74,,218,,")) == 1
    assert "steps of 0.1; the nearest: 36.74 and 36.79" in messages(tmp_path, "T,m,a,36.78,,218,0.1,")[0]


def test_zeros_that_were_added_after_rounding_are_told_apart(tmp_path):
    (message,) = messages(tmp_path, "T,m,a,22.30,,218,0.1,")
    assert message.startswith("2: value: T, m, a: 22.30 is a percentage of 218 rows") and "only as 22.3" in message


def test_one_measurement_has_one_value(tmp_path):
    assert messages(tmp_path, "T1,m,a,31.8,,,,", "T2,m,a,61.8,,,,", "T3,m,a,61.8,,,,", "T3,n,a,61.9,,,,") == [
        "3: value: T2, m, a: 61.8, but 31.8 in T1 (line 2)"
    ]
    assert messages(tmp_path, "T1,m,a,74.35,percent,,,", "T2,m,a,0.74,fraction,,,", "T2,m,a,743,score,1000,,") == []
    assert messages(tmp_path, "T1,,a,74.3,,,,", "T2,,a,31.8,,,,") == []  # of unknown models


def test_relations_are_checked_within_rounding(tmp_path):
    figures = "T,m,VLM,60.1,,,,", "T,m,GPT4,85.8,,,,"
    relation = "[R] = 100 * [VLM] / [GPT4]"
    assert messages(tmp_path, *figures, f"T,m,R,70.0,,,,{relation}") == []
    assert messages(tmp_path, *figures, f"T,m,R,70.1,,,,{relation}") == []
    assert messages(tmp_path, *figures, f"T,m,R,67.3,,,,{relation}") == [
        f"4: relation: T, m, R: {relation} is false: 67.3 = 70.05"
    ]
    others = "T,m,a,0.82,,,,[a] > [a @ n]", "T,n,a,0.83,,,,[a @ m] < [a]"
    assert [message.partition(":")[0] for message in messages(tmp_path, *others)] == ["2"]
    assert messages(tmp_path, "T,m,a,5,,,,[a] = (7 - 2) * 3 / (1 + 2)") == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,metric,value\nm,a,1\n", ':2: "table" is missing'),
        ("table,metric,values\nT,a,1\n", r":2: there is no column 'values'; nearest: value"),
        (HEADER + "T,m,a,sixty,,,,\n", ':2: "value" is "sixty"; it takes the figure as printed'),
        (HEADER + "T,m,a,-1,,,,\n", ':2: "value" is "-1"'),
        (HEADER + "T,m,a,1,percents,,,\n", "takes percent, fraction, score, or nothing"),
        (HEADER + "T,m,a,1,,0,,\n", '"rows" is "0"'),
        (HEADER + "T,m,a,1,,10,0,\n", '"step" is "0"'),
        (HEADER + "T,m,a,1,,10,ten,\n", '"step" is "ten"'),
        (HEADER + "T,m,a,1,,10,,[b] = 1\n", ":2: relation: T has no 'b' of 'm'"),
        (HEADER + "T,m,a,1,,10,,[a] = \n", ":2: relation: .* is no relation; write such as"),
        (HEADER + "T,m,a,0,,10,,[a] = 1 / [a]\n", "is no relation"),
        (HEADER + "T,m,a,1,,10,,[a] = __import__('os')\n", "is no relation"),
        (HEADER + "T,m,a\n", ":2: not as many cells"),
        (HEADER, "holds no figures"),
    ],
)
def test_malformed_tables_are_refused_with_line_and_column(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        check_table(path)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"write a \.csv or \.tsv"):
        check_table(tmp_path / "table.xlsx")
    with pytest.raises(FileNotFoundError):
        check_table(tmp_path / "absent.csv")


def test_a_summary_counts_figures_and_faults(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(HEADER + "T,m,a,30.3,,500,,\nT,m,b,30.2,,500,,\n")
    lines = format_faults(len(read_figures(path)), check_table(path)).splitlines()
    assert len(lines) == 2 and lines[1] == "figures 2, faults 1"
