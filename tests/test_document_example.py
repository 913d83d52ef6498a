"""`examples/document.py`: figures agree with the document to its last digit, errata agree with the definitions."""

import math

import numpy as np
import pytest

import document

Q = np.exp(np.float64(document.SCORES) - np.logaddexp.reduce(document.SCORES))
LN10 = math.log(10)


def computed(rows):
    return np.array([row.softjax for row in rows])


def printed(rows):
    return np.array([float(row.document) for row in rows])


@pytest.mark.parametrize("rows", document.AGREEING.values(), ids=document.AGREEING)
def test_figures_agree_to_the_last_printed_digit(rows):
    for row in rows():
        half_digit = 0.5 * 10.0 ** -len(row.document.partition(".")[2])
        # The exact value of the document's 0.13288 is 0.132884985. float32 holds Σ exp to one ulp of 1, so the loss may
        # round to 0.13289.
        rounding = np.spacing(np.float32(max(1, abs(row.softjax))))
        assert abs(row.softjax - float(row.document)) <= half_digit + rounding, row


def test_every_figure_of_the_document_is_shown():
    shown = {row.document for rows in document.AGREEING.values() for row in rows()}
    probabilities = {"0.0000", "0.0059", "0.1185", "0.8756", "87.56", "72.75"}
    logarithms = {"-20.1329", "-10.1329", "-5.1329", "-2.1329", "-0.1329", "0.13288", "5.13288"}
    assert probabilities | logarithms <= shown


def test_probabilities_match_the_formula():
    np.testing.assert_allclose(computed(document.probabilities())[:5], Q, rtol=1e-6)


def test_base_ten_losses_are_the_printed_nats_over_ln_10():
    rows = document.base_ten()
    expected = [-8.7436, -4.4007, -2.2292, -0.9263, -0.0577, 0.05771, 2.22918]
    np.testing.assert_allclose(computed(rows)[:5], expected[:5], rtol=0, atol=5.1e-5)
    np.testing.assert_allclose(computed(rows)[5:], expected[5:], rtol=0, atol=5.1e-6)
    np.testing.assert_allclose(computed(rows) * LN10, printed(rows), rtol=0, atol=5.1e-5)


def test_softmax_derivative_depends_on_both_classes():
    rows = document.softmax_derivative()
    np.testing.assert_allclose(computed(rows), [*(Q[4] * (np.eye(5)[4] - Q)), 0], rtol=1e-5, atol=1e-7)
    # The printed formula is correct only on the diagonal, and its entries do not sum to 0.
    np.testing.assert_allclose(printed(rows)[:5], Q[4] * (np.eye(5)[4] - Q[4]), rtol=0, atol=5.1e-6)
    np.testing.assert_allclose(printed(rows)[5], Q[4] * (1 - 5 * Q[4]), rtol=0, atol=5.1e-6)


def test_gradient_is_q_minus_p():
    rows = document.gradient()
    np.testing.assert_allclose(computed(rows), [*((Q - np.eye(5)[4]) / LN10), 0], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(printed(rows)[:5], (Q[4] - np.eye(5)[4]) / LN10, rtol=0, atol=5.1e-6)
    np.testing.assert_allclose(
        document.softjax_gradient(document.LABELS), (Q - np.eye(5)[[4, 2]]) / (2 * LN10), rtol=1e-5, atol=1e-7
    )


def test_printed_gradient_sums_to_1_467_for_label_4_only():
    rows = document.gradient_sums()
    assert [row.document for row in rows] == ["1.467", "-0.421", "0.523"]
    sums = [5 * Q[4] - 1, 5 * Q[2] - 1, 5 * (Q[4] + Q[2]) / 2 - 1]
    np.testing.assert_allclose(printed(rows) * LN10, sums, rtol=0, atol=5.1e-4 * LN10)
    np.testing.assert_allclose(computed(rows), 0, atol=1e-7)


def test_logarithm_of_zero():
    term, rounded_loss, exact_loss, q, log_q = computed(document.logarithm_of_zero())
    assert (term, q, log_q) == (0, 0, -200)
    np.testing.assert_allclose(rounded_loss, -math.log(0.8756), rtol=1e-6)
    np.testing.assert_allclose(exact_loss, -math.log(Q[4]), rtol=1e-6)


def test_main_prints_both_columns(capsys):
    document.main()
    text = capsys.readouterr().out
    for figure in ("0.13288", "0.0577112", "5.13288", "2.2291834", "87.56", "72.75", "1.467"):
        assert figure in text
