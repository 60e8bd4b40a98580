"""The error tree: unique codes, fitting sections, words for the reader."""

from __future__ import annotations

import re
from collections import Counter

from shared import errors
from shared.errors import UnderstudyError


def classes(root: type[UnderstudyError] = UnderstudyError) -> list[type[UnderstudyError]]:
    """Every module's, also one whose name another took."""
    below = [found for cls in root.__subclasses__() for found in classes(cls)]
    return [root, *(cls for cls in below if cls.__module__.startswith("shared.errors."))]


def test_every_class_is_had_from_the_package_under_its_name() -> None:
    assert [cls for cls in classes() if getattr(errors, cls.__name__, None) is not cls] == []


def test_codes_are_unique() -> None:
    counts = Counter(cls.code for cls in classes())
    assert [code for code, count in counts.items() if count > 1] == []


def test_codes_say_the_section_of_the_tree() -> None:
    for cls in classes():
        assert re.fullmatch(r"US\d{3}", cls.code), cls
        if cls is not UnderstudyError:
            sections = {2: "1", 3: "2", 4: "3", 5: "456"}[cls.exit_code]
            assert cls.code[2] in sections, cls


def test_every_kind_of_failure_declares_its_own_code() -> None:
    assert [cls for cls in classes() if "code" not in vars(cls)] == []


def test_an_error_reads_as_what_cause_action() -> None:
    error = UnderstudyError("X failed", cause="the disk is full", action="Free space.")
    assert str(error) == "X failed: the disk is full. Free space."
    assert str(UnderstudyError("X failed.", action="Try again.")) == "X failed. Try again."
    assert str(UnderstudyError("X failed", cause="did you mean Y?", action="Correct it.")).endswith(
        "Y? Correct it."
    )
    assert error.as_dict() == {
        "code": "US000",
        "what": "X failed",
        "cause": "the disk is full",
        "action": "Free space.",
    }


def test_the_advice_on_storage_that_is_away_holds_for_commands_which_give_up_too() -> None:
    advice = errors.TransientError("Could not read x").action
    assert "run a command again" in advice
    assert "Servers try again" in advice
