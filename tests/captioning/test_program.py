"""Any program captions: without a shell, and its failures are told."""

import sys
from pathlib import Path

import pytest

from finetune.captioning.program import Program
from finetune.errors import DataError

PICTURE = Path("a b;$(x).png")


def program(code: str, timeout_s: float = 60) -> Program:
    return Program(f"'{sys.executable}' -c \"{code}\" {{image}}", timeout_s)


def test_what_it_prints_is_the_caption_and_no_shell_reads_the_name():
    (answer,) = program("import sys; print(len(sys.argv), sys.argv[1])")([PICTURE])
    assert answer.text == f"2 {PICTURE.resolve()}\n" and not answer.problem


def test_exit_code_and_the_last_line_of_stderr_are_told():
    (answer,) = program("import sys; print('a bell'); sys.exit('first\\nno such model')")([PICTURE])
    assert answer.problem == "the program ended with exit code 1: no such model"


def test_a_program_that_hangs_is_left():
    (answer,) = program("import time; time.sleep(60)", timeout_s=0.2)([PICTURE])
    assert answer.problem == "the program took longer than 0.2 s"


@pytest.mark.parametrize("command, why", [("echo bell", r"has no \{image\}"), ("echo '{image}", "cannot be read")])
def test_a_command_that_cannot_be_is_refused_at_once(command, why):
    with pytest.raises(DataError, match=why):
        Program(command)


def test_a_program_that_is_not_there_is_refused_before_the_first_picture():
    with pytest.raises(DataError, match="no program 'no-such-program'"):
        Program("no-such-program {image}").check([PICTURE])
