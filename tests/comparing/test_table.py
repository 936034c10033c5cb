import csv
import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kinfold.comparing.statistics import corrected_resampled_t, interval, paired_t
from kinfold.comparing.table import Score, corrected_p, markdown, sentence, summary, to_csv, to_markdown
from kinfold.errors import InputError

CONTROLS = ("conventional", "restarts", "all-rows")
VALUES = {
    "conventional": (90.0, 90.5, 89.5, 90.25),
    "all-rows": (93.0, 93.5, 92.5, 93.0),
    "amto": (92.0, 92.25, 92.5, 92.0),
    "teach": (95.0, 95.25, 94.5, 95.25),
    "ensemble": (97.0, 97.5, 96.5, 97.0),
}
VISITS = {"conventional": 1000, "all-rows": 8000, "amto": 8000, "teach": 6000, "ensemble": 8000}


def records(values, visits=VISITS):
    return [
        Score(arm, seed, value, 0.25 + seed, value + 2.0 + seed, visits.get(arm, 8000), 10.0 + seed, f"task {seed}")
        for arm, row in values.items()
        for seed, value in enumerate(row)
    ]


def summed(values=VALUES, control="all-rows", higher_is_better=True, test_share=None, visits=VISITS):
    return summary(
        records(values, visits), control, higher_is_better, test_share, controls=CONTROLS, inference={"ensemble": 8}
    )


def of(found, arm):
    return next(s for s in found if s.arm == arm)


def only(*arms):
    return {arm: VALUES[arm] for arm in arms}


def test_a_summary_by_hand():
    found = summed()
    assert [s.arm for s in found] == ["teach", "all-rows", "amto", "conventional", "ensemble"]
    teach, control = of(found, "teach"), of(found, "all-rows")
    d = np.array(VALUES["teach"]) - np.array(VALUES["all-rows"])
    assert teach.difference == paired_t(d)
    assert teach.against["conventional"].wins == 4
    assert (teach.mean, teach.low, teach.high) == interval(np.array(VALUES["teach"]))
    assert teach.rank == 1.0
    assert teach.gap == interval(np.array([2.0, 3.0, 4.0, 5.0]))
    assert teach.train_loss.mean == 1.75
    assert (teach.sample_visits, teach.visits, teach.seconds, teach.seeds) == (6000.0, 6.0, 11.5, 4)
    assert control.difference is None
    assert set(control.against) == {"conventional"}
    assert (control.is_control, teach.is_control) == (True, False)
    assert control.rank == (2 + 2 + 2.5 + 2) / 4


def test_an_upper_reference_is_neither_ranked_nor_tested():
    found = summed()
    ensemble = of(found, "ensemble")
    assert ensemble.is_reference
    assert math.isnan(ensemble.rank)
    assert [s.rank for s in found[:-1]] == [s.rank for s in summed(only("conventional", "all-rows", "amto", "teach"))]
    assert set(corrected_p(found, "all-rows")) == {"conventional", "amto", "teach"}


def test_seeds_that_re_split_the_data_are_corrected_for():
    d = np.array(VALUES["teach"]) - np.array(VALUES["all-rows"])
    assert of(summed(test_share=0.25), "teach").difference == corrected_resampled_t(d, 0.25)


def test_for_an_error_lower_is_better():
    found = summed({"all-rows": (0.5, 0.6, 0.5), "teach": (0.4, 0.4, 0.5)}, higher_is_better=False)
    teach = of(found, "teach")
    assert found[0] == teach
    assert teach.difference.mean == pytest.approx(0.1)
    assert (teach.difference.wins, teach.difference.ties) == (2, 1)
    assert teach.rank == pytest.approx(3.5 / 3)
    assert teach.mean == pytest.approx(1.3 / 3)
    assert teach.gap.mean == pytest.approx(-3.0)  # here the rows trained on have the larger error


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4))
def test_the_order_of_the_records_does_not_matter(shuffler, seeds):
    scores = records({arm: row[:seeds] for arm, row in VALUES.items()})
    shuffled = list(scores)
    shuffler.shuffle(shuffled)
    one, other = (
        to_markdown(summary(x, "all-rows", True, None, controls=CONTROLS, inference={"ensemble": 8}))
        for x in (scores, shuffled)
    )
    assert one == other


def test_a_run_that_diverged_comes_last_and_is_said_to_be_open():
    for bad in (math.nan, -math.inf):
        values = only("conventional", "all-rows", "teach") | {"amto": (94.0, bad, 94.0, 94.0)}
        found = summed(values)
        assert found[-1].arm == "amto"
        assert math.isnan(found[-1].mean)
        assert "nothing can be said of: amto (–)" in sentence(found, "all-rows")
        assert "nan" not in to_markdown(found)


def test_the_table():
    text = to_markdown(summed(test_share=0.2))
    lines = text.splitlines()
    rows = {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines[2:7]}
    assert lines[0].startswith("| arm | mean (95% interval) | better than all-rows by | p |")
    assert list(rows) == ["teach", "all-rows", "amto", "conventional", "ensemble (8 × inference)"]
    assert len({line.count("|") for line in lines[:7]}) == 1
    assert rows["all-rows"][0] == "93.00 (92.35 to 93.65)"
    assert rows["all-rows"][1:4] == ["control", "–", ""]
    assert rows["teach"][1].startswith("+2.00 (+")
    assert rows["teach"][3] == "4–0–0"
    assert rows["amto"][3] == "0–1–3"
    assert rows["conventional"][2] == "<0.001"
    assert rows["amto"][2] == f"{corrected_p(summed(test_share=0.2), 'all-rows')['amto']:.3f}"
    assert rows["teach"][7:] == ["6.00", "11.5"]
    assert rows["ensemble (8 × inference)"][2] == "–"
    assert rows["ensemble (8 × inference)"][4] == "–"
    assert "Nadeau and Bengio" in lines[-1]
    assert "upper reference" in lines[-1]
    assert "the paired t test over seeds" in to_markdown(summed())
    assert "upper reference" not in to_markdown(summed(only("all-rows", "teach")))


def test_numbers_have_as_many_decimals_as_they_need():
    assert "| 0.3000 (" in to_markdown(summed({"all-rows": (0.25, 0.35), "teach": (0.2, 0.3)}))
    assert "-0.00" not in to_markdown(summed({"all-rows": (93.0, 93.0), "teach": (92.9999, 93.0)}))
    assert "+0.00" in to_markdown(summed({"all-rows": (93.0, 93.0), "teach": (92.9999, 93.0)}))
    assert "| 0.0000 |" in to_markdown(summed({"all-rows": (0.0, 0.0)}))


def test_cells_cannot_break_the_table():
    assert markdown([["a|b\nc", "1"]], ["arm", "x"]).splitlines() == ["| arm | x |", "|:---|---:|", r"| a\|b c | 1 |"]


def test_csv_gives_every_record_back():
    scores = [*records(VALUES), Score('odd, "one"', 0, 1 / 3, 1e-300, 0.1 + 0.2, 1, 0.0, "soup\nof 3")]
    rows = list(csv.DictReader(io.StringIO(to_csv(scores))))
    back = [
        Score(
            row["arm"],
            int(row["seed"]),
            float(row["value"]),
            float(row["train_loss"]),
            float(row["train_value"]),
            int(row["visits"]),
            float(row["seconds"]),
            row["kept"],
        )
        for row in rows
    ]
    assert back == scores


def test_the_sentence_where_transfer_helped():
    said = sentence(summed(), "all-rows")
    assert "Against all-rows over 4 seeds: better beyond doubt: teach (+2.00, " in said
    assert "; level: amto (-0.81, " in said
    assert "; worse beyond doubt: conventional (-2.94, " in said
    assert "Transfer helped here: teach scored 95.00 against 93.00 for all-rows, the strongest control (+2.00, " in said
    assert "; 6.0 and 8.0 times the visits of conventional)." in said
    assert said.endswith("For reference only: ensemble (8 times the inference) scored 97.00.")
    assert "compute alone" not in said


def test_the_sentence_where_it_did_not():
    found = summed(only("conventional", "all-rows", "amto", "ensemble"), control="conventional")
    said = sentence(found, "conventional")
    assert "better beyond doubt: all-rows (+2.94, " in said
    assert "Transfer did not help here: all-rows, the strongest control, scored 93.00 against 92.19 for amto" in said
    assert "(-0.81, " in said
    assert "Transfer did not help" in sentence(summed({"all-rows": (1.0, 2.0), "amto": (1.0, 2.0)}), "all-rows")


def test_the_sentence_where_it_is_open():
    values = {"all-rows": (93.0, 93.5, 92.5, 93.0), "amto": (93.5, 93.0, 92.0, 94.5)}
    said = sentence(summed(values), "all-rows")
    assert "level: amto (+0.25, " in said
    assert "Whether transfer helped here is open: amto scored 93.25 against 93.00 for all-rows" in said
    assert "visits" not in said  # no conventional arm to count them in


def test_holm_decides_what_is_beyond_doubt():
    amto = (92.0, 94.0, 94.5, 94.5)  # p = 0.03 alone, four times that among four
    control = (91.0, 93.5, 92.5, 93.0)
    alone = {"all-rows": control, "amto": amto}
    among = alone | {f"other {i}": tuple(x + 0.1 * (-1) ** k for k, x in enumerate(control)) for i in range(3)}
    assert "better beyond doubt: amto" in sentence(summed(alone), "all-rows")
    assert "Transfer helped here" in sentence(summed(alone), "all-rows")
    assert "better beyond doubt" not in sentence(summed(among), "all-rows")
    assert "Whether transfer helped here is open: amto" in sentence(summed(among), "all-rows")


def test_the_arm_named_is_one_that_is_ahead_beyond_doubt():
    wild = {"all-rows": (93.0, 93.5, 92.5, 93.0), "papa": (90.0, 99.0, 91.0, 105.0), "teach": VALUES["teach"]}
    found = summed(wild)
    assert found[0].arm == "papa"
    assert "Transfer helped here: teach" in sentence(found, "all-rows")


def test_more_compute_than_any_control_had_is_said():
    said = sentence(summed(only("conventional", "teach"), control="conventional"), "conventional")
    assert "Transfer helped here: teach" in said
    assert said.endswith("No control was run at equal compute, so this may be the compute alone.")


def test_a_reference_is_never_what_helped():
    said = sentence(summed(only("all-rows", "ensemble")), "all-rows")
    assert said == (
        "There is nothing to compare all-rows with. For reference only: ensemble (8 times the inference) scored 97.00."
    )


def test_one_seed_leaves_everything_open():
    found = summed({arm: row[:1] for arm, row in VALUES.items()})
    said = sentence(found, "all-rows")
    assert "over 1 seed: nothing can be said of: teach (+2.00), amto (-1.00), conventional (-3.00)." in said
    assert "Whether transfer helped here is open: teach" in said
    assert "One seed, no intervals." in to_markdown(found)


@pytest.mark.parametrize(
    ("scores", "control", "message"),
    [
        ([], "all-rows", "scores: there are none"),
        (records(only("all-rows")) * 2, "all-rows", "arm 'all-rows' has seed 0 twice"),
        (records(only("all-rows", "teach"))[:-1], "all-rows", "arm 'teach' lacks seed 3"),
        (records(only("all-rows")), "all-row", "control: unknown name 'all-row', did you mean 'all-rows'"),
        (records(only("all-rows", "ensemble")), "ensemble", "control: 'ensemble' answers with 8 models"),
    ],
)
def test_scores_that_cannot_be_summed_up_name_their_cause(scores, control, message):
    with pytest.raises(InputError, match=message):
        summary(scores, control, True, None, controls=CONTROLS, inference={"ensemble": 8})


def test_a_control_that_nothing_is_set_against():
    with pytest.raises(InputError, match="control: unknown name 'amto'"):
        sentence(summed(), "amto")


def test_an_arm_without_visits_has_no_unit():
    scores = [replace(score, visits=0) for score in records(only("conventional", "teach"))]
    assert all(math.isnan(s.visits) for s in summary(scores, "conventional", True, None, controls=CONTROLS))
