"""The report as one HTML page that needs nothing beside it: pictures and videos are inside."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from genreward_fast.files import atomic_path

_TYPES = {".png": "image/png", ".mp4": "video/mp4"}

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
  body { font: 15px/1.5 system-ui, sans-serif; color: #24292f; background: #fff; margin: 2rem auto; max-width: 70rem;
         padding: 0 1rem; }
  h1 { font-size: 1.6rem; margin-bottom: 0; }
  h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #d8dee4; }
  .scroll { overflow-x: auto; }
  table { border-collapse: collapse; font-size: .9rem; }
  th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #d8dee4; white-space: nowrap; }
  th:first-child, td:first-child { text-align: left; }
  td.best { font-weight: 600; }
  small, .quiet { color: #57606a; }
  td small, th small { display: block; font-weight: 400; }
  img, video { max-width: 100%; height: auto; }
  ul.notes { background: #fff8e6; border: 1px solid #e8d9a8; padding: .6rem .6rem .6rem 1.8rem; }
  .goal { display: flex; gap: 1rem; align-items: flex-start; flex-wrap: wrap; }
  .goal div { width: 14rem; }
  .goal video { width: 100%; }
  .goal img { max-width: 50rem; width: calc(100% - 16rem); min-width: 20rem; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="quiet">{{ subtitle }}</p>
{% if notes %}<ul class="notes">{% for note in notes %}<li>{{ note }}</li>{% endfor %}</ul>{% endif %}

<h2>Success and return</h2>
<p>Mean over seeds of each run's last evaluation up to the step named; below it the 95% bootstrap interval over seeds.
The best success of a task (return, where success is not defined) stands out, which does not mean that the difference is
certain.</p>
<div class="scroll"><table id="results">
<tr><th></th>{% for task, step in compared.items() %}<th>{{ task }}<small>step {{ step }}</small></th>{% endfor %}</tr>
{% for row in results %}<tr><td>{{ row.method }}</td>
{% for cell in row.cells %}<td{% if cell and cell.best %} class="best"{% endif %}>{% if cell %}{% if cell.success %}
{{ cell.success }}<small>{{ cell.success_interval }}</small>{% endif %}
<small>return {{ cell.returns }} {{ cell.returns_interval }}</small>
{% else %}–{% endif %}</td>{% endfor %}</tr>
{% endfor %}</table></div>
{% if overall %}<p>{{ overall_text }}</p>
<p><img src="{{ overall }}" alt="Interquartile means and probabilities of improvement"></p>
{% endif %}

{% for task in tasks %}
<h2>{{ task.name }}</h2>
{% for picture in task.pictures %}<p><img src="{{ picture.data }}" alt="{{ picture.text }}"></p>
{% endfor %}
{% for goal in task.goals %}<div class="goal">
<div>{% if goal.video %}<video src="{{ goal.video }}" controls loop muted playsinline></video><br>{% endif %}
<small>goal: “{{ goal.text }}”, {{ goal.source }}{% if goal.note %}; {{ goal.note }}{% endif %}</small></div>
{% if goal.sheet %}<img src="{{ goal.sheet }}" alt="The goal video's frames with their scores">{% endif %}
</div>{% endfor %}
{% endfor %}

<h2>Runs</h2>
<div class="scroll"><table id="runs">
<tr>{% for name in run_columns %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in runs %}<tr>{% for value in row %}<td>{{ value }}</td>{% endfor %}</tr>
{% endfor %}</table></div>
<p class="quiet">Curves: each run's mean over its last 20 training episodes, then the mean over seeds; the band is the
95% bootstrap interval. Interquartile mean and probability of improvement: rliable (Agarwal et al. 2021), resampling the
seeds of each task {{ repetitions }} times. The same figures are in results.csv, curves.csv and runs.csv.</p>
</body>
</html>
"""


def write_page(path: Path, **content: Any) -> None:
    """Fills the template and writes it to `path`. Text is escaped."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    text = environment.from_string(_TEMPLATE).render(**content)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def data_url(path: Path) -> str:
    """A picture's or video's bytes as a URL."""
    return f"data:{_TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
