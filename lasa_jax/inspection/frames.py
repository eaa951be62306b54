"""A page that moves without a kernel: LASA's filter under several attacks, with sliders for strength, sparsity and radii.

    page = frames.page({"Lie, z": {0.5: round_a, 1.5: round_b}}, sparsity_levels=[0.0, 0.3, 0.6])
    IPython.display.HTML(page)

Scores are computed once for each attack, strength and sparsity level, and kept in the page with two decimals. Which of them
reach the radii is decided in the browser.
"""

import html
import json
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lasa_jax.errors import InputError
from lasa_jax.inspection import causes, filtering
from lasa_jax.inspection.filtering import layer_rows
from lasa_jax.inspection.rounds import Round, layers

_NOT_FINITE = -1  # in place of a score of a client that LASA does not read
_MOST = 99.99  # in place of larger scores, and of those of clients that are all alike
RADII = tuple(0.25 * step for step in range(1, 17))


def page(
    rounds: Mapping[str, Mapping[float, Round]],
    sparsity_levels: Sequence[float],
    *,
    magnitude_radius: float = 2.0,
    direction_radius: float = 1.0,
) -> str:
    """HTML with its own script: a menu of attacks, four sliders, the cells coloured by cause, and a sentence about them.

    Args:
      rounds: for each attack the same round at several strengths, by what the menu calls it.
      sparsity_levels: that the slider has; it begins at the middle one.
      magnitude_radius, direction_radius: where the other sliders begin, of `RADII`.

    Raises:
      InputError: if there is no round, or rounds differ in their clients or layers.
    """
    found = [one for of in rounds.values() for one in of.values()]
    if not found or not len(sparsity_levels) or not all(rounds.values()):
        raise InputError("rounds: allowed is at least one round of each attack, and one sparsity level")
    first = found[0]
    names = list(layers(first.updates))
    if any(list(layers(one.updates)) != names or (one.malicious != first.malicious).any() for one in found):
        raise InputError("rounds: allowed are rounds of the same clients and layers")
    for name, value in (("magnitude_radius", magnitude_radius), ("direction_radius", direction_radius)):
        if value not in RADII:
            raise InputError(f"{name} = {value}: allowed are {RADII[0]} to {RADII[-1]} in steps of 0.25")
    order = np.argsort(~first.malicious, kind="stable")
    data = {
        "layers": [name.removeprefix("params/") for name in names],
        "clients": first.names()[order].tolist(),
        "malicious": int(first.malicious.sum()),
        "causes": causes.CAUSES,
        "colours": causes.COLOURS,
        "sparsity": [float(level) for level in sparsity_levels],
        "radii": RADII,
        "attacks": [
            {
                "name": attack,
                "strengths": [float(strength) for strength in of],
                "scores": [[_scores(one, level, order) for level in sparsity_levels] for one in of.values()],
            }
            for attack, of in rounds.items()
        ],
        "start": [len(sparsity_levels) // 2, RADII.index(magnitude_radius), RADII.index(direction_radius)],
    }
    place = f"lasa-{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(data)).hex[:8]}"  # the same page has the same bytes
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    options = "".join(f"<option value={at}>{html.escape(name)}</option>" for at, name in enumerate(rounds))
    return _PAGE.replace("@PLACE@", place).replace("@OPTIONS@", options).replace("@DATA@", text)


def _scores(saved: Round, sparsity_level: float, order: np.ndarray) -> list[list[list[float]]]:
    """Both scores of each layer and client, as they are shown: `[[magnitude, direction], ...]` of lists `(layers, n)`."""
    info = filtering.lasa(saved, sparsity_level=sparsity_level, magnitude_radius=np.inf, direction_radius=np.inf)
    read = (layer_rows(info.weight) != 0).any(axis=0)  # no radius: who has no weight has an update that is not finite
    return [
        _rounded(layer_rows(score), read)[:, order].tolist() for score in (info.magnitude_score, info.direction_score)
    ]


def _rounded(score: Any, read: np.ndarray) -> np.ndarray:
    """Scores to two decimals, downwards, so that none reaches a radius by being rounded."""
    shown = np.minimum(np.where(np.isnan(score), _MOST, score), _MOST)
    return np.where(read[None], np.floor(shown.astype(np.float64) * 100) / 100, _NOT_FINITE).round(2)


_PAGE = """
<div data-page="@PLACE@" style="font-family:sans-serif;font-size:13px;max-width:760px">
<p><label>attack <select data-at="0">@OPTIONS@</select></label></p>
<table style="border:none;font-size:13px"><tbody></tbody></table>
<p data-legend style="line-height:1.8"></p>
<p data-said style="min-height:3em"></p>
<div style="overflow-x:auto"><canvas></canvas></div>
</div>
<script>
(() => {
  const data = @DATA@;
  // A notebook may show a page twice: each script takes the first that none has taken.
  const root = document.querySelector('[data-page="@PLACE@"]:not([data-taken])');
  const number = window.lasaPages = (window.lasaPages ?? 0) + 1;
  root.dataset.taken = number;
  const body = root.querySelector("tbody"), menu = root.querySelector("select"), canvas = root.querySelector("canvas");
  const names = ["strength", "sparsity level", "magnitude radius", "direction radius"];
  const at = [Math.floor(data.attacks[0].strengths.length / 2), ...data.start];
  const values = () => [data.attacks[+menu.value].strengths, data.sparsity, data.radii, data.radii];
  const sliders = names.map((name, k) => {
    const row = body.insertRow(), slider = document.createElement("input"), shown = document.createElement("span");
    const label = document.createElement("label");
    label.textContent = name;
    slider.type = "range"; slider.min = 0; slider.step = 1; slider.id = `@PLACE@-${number}-${k}`; label.htmlFor = slider.id;
    [label, slider, shown].forEach(part => {
      const cell = row.insertCell(); cell.style.border = "none"; cell.append(part);
    });
    slider.oninput = () => { at[k] = +slider.value; draw(); };
    return [slider, shown];
  });
  root.querySelector("[data-legend]").innerHTML = data.causes.map((name, k) =>
    `<span style="display:inline-block;width:1em;height:1em;border:1px solid #999;vertical-align:-2px;` +
    `background:${data.colours[k]}"></span> ${name} &emsp;`).join("");
  const causeOf = (m, d, rm, rd) => m < 0 ? 4 : (m >= rm ? 1 : 0) + (d >= rd ? 2 : 0);
  const percent = (part, whole) => whole ? `${Math.round(100 * part / whole)} %` : "none";
  const draw = () => {
    const now = values();
    sliders.forEach(([slider, shown], k) => {
      slider.max = now[k].length - 1; at[k] = Math.min(at[k], now[k].length - 1);
      slider.value = at[k]; slider.disabled = now[k].length < 2; shown.textContent = +now[k][at[k]].toFixed(3);
    });
    const [magnitude, direction] = data.attacks[+menu.value].scores[at[0]][at[1]];
    const rm = data.radii[at[2]], rd = data.radii[at[3]], n = data.clients.length, bad = data.malicious;
    const cells = data.layers.map((_, l) => {
      const line = data.clients.map((_, c) => causeOf(magnitude[l][c], direction[l][c], rm, rd));
      return line.some(cause => cause === 0) ? line : line.map(cause => cause === 4 ? 4 : 0);  // nobody left: all are kept
    });
    const size = 13, wide = 46, left = 92, top = 84, scale = window.devicePixelRatio || 1;
    const width = left + wide * data.layers.length + 64, height = top + size * n + 16;
    canvas.width = width * scale; canvas.height = height * scale;
    canvas.style.width = `${width}px`; canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale); pen.fillStyle = "white"; pen.fillRect(0, 0, width, height);
    pen.font = "10px sans-serif"; pen.textBaseline = "middle";
    data.layers.forEach((name, l) => {
      pen.save(); pen.fillStyle = "black"; pen.translate(left + wide * (l + 0.5), top - 6); pen.rotate(-Math.PI / 4);
      pen.textAlign = "left"; pen.fillText(name, 0, 0); pen.restore();
    });
    const dropped = [0, 0], whole = [0, 0];
    data.clients.forEach((id, c) => {
      const y = top + size * c + (c >= bad ? 6 : 0), kind = c < bad ? 0 : 1;
      pen.fillStyle = kind ? "#0072B2" : "#D55E00"; pen.textAlign = "right"; pen.fillText(id, left - 8, y + size / 2);
      cells.forEach((line, l) => {
        whole[kind] += 1; dropped[kind] += line[c] !== 0;
        pen.fillStyle = data.colours[line[c]]; pen.fillRect(left + wide * l + 1, y + 1, wide - 2, size - 2);
      });
    });
    [["malicious", 0, bad, 0], ["benign", bad, n, 1]].forEach(([word, first, last, kind]) => {
      if (last > first) {
        pen.fillStyle = kind ? "#0072B2" : "#D55E00"; pen.textAlign = "left";
        pen.fillText(word, 4, top + size * (first + last) / 2 + 6 * kind);
      }
    });
    root.querySelector("[data-said]").textContent = data.attacks[+menu.value].name +
      (now[0].length > 1 ? ` ${+now[0][at[0]].toFixed(3)}: ` : ": ") +
      `${percent(dropped[0], whole[0])} of the malicious cells (client and layer) are dropped, and ` +
      `${percent(dropped[1], whole[1])} of the benign ones.`;
  };
  menu.onchange = () => { at[0] = Math.floor(values()[0].length / 2); draw(); };
  draw();
})();
</script>
"""
