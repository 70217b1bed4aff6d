"""What tests are made of: small bases, pictures, adapters and short runs. Importing it does nothing else."""

from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
