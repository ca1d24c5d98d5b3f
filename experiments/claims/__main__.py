"""`python -m experiments.claims`: every README and picture of the claims, from the committed run tables."""

from pathlib import Path

from experiments.claims.definition import all_claims
from experiments.claims.pages import (
    claim_block,
    figure_names,
    kept_tables,
    measured,
    summary_table,
    with_block,
)
from hooked_ssm.saving import write_atomically

ROOT = Path(__file__).parents[2]


def main() -> None:
    tables, claims = kept_tables(), all_claims()
    for claim in claims:
        for found in measured(claim, tables).values():
            if found.runs[0]:
                for name, chart in zip(figure_names(found), found.figures, strict=True):
                    picture = chart.png()
                    write_atomically(claim.folder / name, lambda path, data=picture: path.write_bytes(data))
        page = claim.folder / "README.md"
        replace_block(page, claim_block(claim, tables))
    replace_block(ROOT / "README.md", summary_table(claims, tables))


def replace_block(page: Path, block: str) -> None:
    text = with_block(page.read_text(), block)
    write_atomically(page, lambda path: path.write_text(text))


if __name__ == "__main__":
    main()
