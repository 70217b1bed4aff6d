"""Every variant of every family keeps what `support.contract` says that a family owes."""

from pathlib import Path

import pytest
import torch
from families.cases import CASES, Case, small_base
from support.contract import contract

from finetune import families


@pytest.mark.parametrize("case", CASES, ids=[f"{case.family}-{case.name}" for case in CASES])
def test_the_family_keeps_the_contract(tmp_path: Path, case: Case) -> None:
    base = small_base(case, tmp_path / "base")
    (tmp_path / "out").mkdir()
    with torch.no_grad():
        assert families.detect(str(base)).family == case.family
    contract(str(base), tmp_path / "out")
