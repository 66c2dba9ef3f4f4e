"""The plot of a study: each run's mean rating for each question, and how far raters agree on it."""

import io

from ph2p.evaluation.formatting import visible
from ph2p.study.analyse import Analysis
from ph2p.study.tables import interval

NAME = 24  # letters of a run's name


def draw(analysis: Analysis) -> bytes:
    """An SVG, the same bytes for the same analysis: a panel a question, a point and its interval a run."""
    import matplotlib
    from matplotlib.figure import Figure

    questions, runs = analysis.key.questions, list(analysis.key.runs)
    style = {"svg.hashsalt": "ph2p", "svg.fonttype": "path", "font.size": 9, "text.parse_math": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(1.5 + 2.4 * len(questions), 1.3 + 0.32 * len(runs)), layout="constrained")
        panels = figure.subplots(1, len(questions), sharey=True, squeeze=False)[0]
        for panel, question in zip(panels, questions, strict=True):
            means = [analysis.means[question.key][run] for run in runs]
            errors = [[m.value - m.low for m in means], [m.high - m.value for m in means]]
            panel.errorbar([m.value for m in means], range(len(runs)), xerr=errors, fmt="o", color="#4f46c8", capsize=3)
            panel.set_xlim(0.8, question.points + 0.2)
            panel.set_xticks(range(1, question.points + 1))
            panel.set_ylim(len(runs) - 0.5, -0.5)
            panel.set_yticks(range(len(runs)), [_name(run) for run in runs])
            panel.set_title(question.key)
            panel.set_xlabel(f"alpha {interval(analysis.alpha[question.key]['ordinal'])}")
            panel.grid(axis="x", alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _name(run: str) -> str:
    shown = visible(run)
    return shown if len(shown) <= NAME else f"…{shown[1 - NAME :]}"
