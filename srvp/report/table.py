"""Our results beside those of papers: one table, as Markdown and as CSV.

The best of many samples scores more than the best of few. A model with another number of samples
than most of its data set says so in its name.

The papers' numbers are in `reports/paper_results.csv`, a row per number, with the source, the
setting as printed there and notes. The table has those on our data sets with as many given and
predicted frames. Some numbers are printed in several places: the first with an interval counts.
Our numbers are in the `metrics.json` of runs and pretrained models; the `protocol.json` beside it
says how they were made.
"""

import json
from pathlib import Path

import pandas as pd

from srvp.data.sets import SETS
from srvp.evaluation.references import PERFECT, PERFECT_MEAN, REFERENCES, table_rank
from srvp.experiment import load_params
from srvp.files import atomic_write, project_root
from srvp.metrics.table import METRICS
from srvp.report.numbers import heading, markdown_table, number

COLUMNS = [
    "dataset",
    "model",
    "setting",  # given -> all frames, and what else the source tells
    *(column for metric in METRICS for column in (metric, f"{metric}_ci95")),
    "videos",  # ours: how many test clips
    "folder",  # ours: of the results, such as `runs/quick`; empty for the papers'
    "source",
    "note",
]

# Above the Markdown table in its file.
NOTES = """\
# Results

Bold: measured here, with the folder of the results. 5 → 25: five frames given, 25 in all. ±: 95 %
interval over test clips. dt = 1/2: two Euler steps per frame. The perfect model is the generator
of the clips itself, the perfect mean the mean of its samples: [forecasts](../docs/forecasts.md).
"""


def experiments_to_report(params: Path) -> list[str]:
    """Return the experiments that `run` in a `params.yaml` names."""
    return list(load_params(params)["run"])


def results_table(folders: list[Path], paper: Path) -> pd.DataFrame:
    """Return our results, and the papers' below those of each data set.

    Args:
        folders: of results: runs and pretrained models.
        paper: the CSV file of the papers' numbers.

    Returns:
        A row per model, with `COLUMNS`; missing numbers are NaN.

    Raises:
        FileNotFoundError: an experiment has not been evaluated.
    """
    ours = mark_other_counts(pd.concat(map(_our_rows, folders), ignore_index=True), "model")
    # Results on the same clips have the same baselines; some pretrained models are also runs.
    printed = ours[["dataset", "model", "setting"]].assign(
        **{m: ours.apply(number, axis=1, metric=m) for m in METRICS if m in ours}
    )
    ours = ours[~printed.duplicated()]
    ours = models_first(ours, "model")
    rows = pd.concat([ours, paper_rows(paper, ours)])
    order = {dataset: i for i, dataset in enumerate(ours["dataset"].unique())}
    rows = rows.sort_values("dataset", key=lambda names: names.map(order), kind="stable")
    return rows.reindex(columns=COLUMNS).reset_index(drop=True)


def models_first(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Order a table's rows: those of models, then those of the reference predictors."""
    return table.sort_values(
        column, key=lambda names: names.map(table_rank), kind="stable", ignore_index=True
    )


def mark_other_counts(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """Name models as `quick (best of 20)` where most of their data set have other samples.

    Args:
        table: with the columns `dataset` and `samples`, the number of samples per clip.
        column: of the names.
    """
    models = ~table[column].isin(REFERENCES)
    usual = table[models].groupby("dataset")["samples"].agg(lambda counts: counts.mode().max())
    sampled = models | table[column].isin([PERFECT, PERFECT_MEAN])
    other = sampled & (table["samples"] != table["dataset"].map(usual))
    counts = table["samples"].map(sample_count)
    counts = counts.mask(table[column] == PERFECT_MEAN, counts.str.removeprefix("best "))
    marked = table[column] + " (" + counts + ")"
    return table.assign(**{column: table[column].mask(other, marked)})


def sample_count(samples: int) -> str:
    """Say of how many samples a score is the best."""
    return "1 sample" if samples == 1 else f"best of {samples}"


def _our_rows(folder: Path) -> pd.DataFrame:
    """Return a row per predictor of a folder of results."""
    protocol = read_results(folder / "protocol.json")
    data, evaluation, source = (protocol[key] for key in ("data", "evaluation", "source"))
    given, total = evaluation["conditioning_frames"], data["test_frames"]
    root = project_root()
    place = folder.relative_to(root) if folder.is_relative_to(root) else folder
    rows = []
    for predictor, values in read_results(folder / "metrics.json").items():
        many = predictor == PERFECT or predictor not in REFERENCES
        samples = evaluation["samples"]
        counts = f"{sample_count(samples if many else 1)}, {data['test_videos']} videos"
        rows.append(
            {
                "dataset": SETS[data["dataset"]].title,
                "model": predictor,
                "samples": samples,
                "frames": f"{given}->{total}",
                "setting": f"{given}->{total}, {counts}",
                **values,
                "videos": data["test_videos"],
                "folder": place.as_posix(),
                "note": protocol["protocol"],
                "source": f"srvp {protocol['srvp']}, {source['file']} {source['sha256'][:8]}",
            }
        )
    return pd.DataFrame(rows)


def read_results(path: Path) -> dict:
    """Return the content of a JSON file of results.

    Raises:
        FileNotFoundError: the experiment has not been evaluated.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing: run 03_evaluate, or `dvc repro`, first")
    return json.loads(path.read_text())


def paper_rows(path: Path, ours: pd.DataFrame) -> pd.DataFrame:
    """Return a row per model of the papers, on our data sets and with our numbers of frames."""
    numbers = pd.read_csv(path)
    numbers["metric"] = numbers["metric"].str.lower()
    numbers["frames"] = numbers["setting"].str.extract(r"^(\d+->\d+)")
    numbers = numbers.merge(ours[["dataset", "frames"]].drop_duplicates())
    numbers = numbers.sort_values("ci95", key=pd.isna, kind="stable")
    key = ["dataset", "frames", "model"]
    rows = []
    for (dataset, _, model), group in numbers.groupby(key, sort=False):
        chosen = group.drop_duplicates("metric").set_index("metric")
        rows.append(
            {
                "dataset": dataset,
                "model": model,
                "setting": max(chosen["setting"], key=len),
                **chosen["value"],
                **chosen["ci95"].add_suffix("_ci95"),
                "folder": "",
                "source": "; ".join(_sources(chosen)),
                "note": "; ".join(chosen["note"].dropna().unique()),
            }
        )
    return pd.DataFrame(rows)


def _sources(numbers: pd.DataFrame) -> list[str]:
    """Return each source with the tables that the numbers come from."""
    tables = numbers.groupby("source", sort=False)["table"].unique()
    return [f"{source}: {', '.join(names)}" for source, names in tables.items()]


def markdown(table: pd.DataFrame) -> str:
    """Return the table as Markdown, ours in bold, missing numbers left out."""
    lines = []
    for _, row in table.iterrows():
        ours = bool(row["folder"])
        lines.append(
            [
                row["dataset"],
                f"**{row['model']}**" if ours else row["model"],
                row["setting"].replace("->", " → "),
                *(number(row, metric) for metric in METRICS),
                f"`{row['folder']}` ({row['source']})" if ours else row["source"],
            ]
        )
    return markdown_table(["data set", "model", "frames", *map(heading, METRICS), "source"], lines)


def write_table(table: pd.DataFrame, folder: Path) -> None:
    """Write `table.md` and `table.csv` into `folder`."""
    with atomic_write(folder / "table.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    with atomic_write(folder / "table.md") as temporary:
        temporary.write_text(f"{NOTES}\n{markdown(table)}", encoding="utf-8")
