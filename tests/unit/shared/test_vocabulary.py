"""Closed vocabularies: the words are those of the JSON that stands in storage and databases, and one that is not known spoils nothing."""

from __future__ import annotations

import msgspec

from shared.api.machines import ErrorView
from shared.status import AgentReport, Problem
from shared.vocabulary import Severity


def test_a_report_with_a_severity_that_is_not_known_is_taken_and_shown_as_an_error() -> None:
    report = b'{"errors": [{"code": "US400", "what": "x", "severity": "alarming"}]}'
    assert msgspec.json.decode(report, type=AgentReport).errors[0].severity is Severity.ERROR


def test_an_answer_of_a_newer_config_server_with_another_severity_can_be_read() -> None:
    answer = b'{"code": "US400", "what": "x", "severity": "alarming"}'
    assert msgspec.json.decode(answer, type=ErrorView).severity is Severity.ERROR


def test_a_problem_of_usual_severity_is_sent_without_the_word() -> None:
    assert msgspec.json.encode(Problem(code="US400", what="x")) == b'{"code":"US400","what":"x"}'
