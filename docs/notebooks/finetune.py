# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Fine-tune and predict
#
# From a table of films with a column of labels to a network that says them of new films. All films are **drawn**, few
# and small, and the run is short: what comes out shows how things are done, and is no result.

# %%
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

import zoo
from zoo.commands.phantom import chest_phantom


def draw_film(patient: int, visit: int) -> Image.Image:
    """A drawn film of 96 pixels; patients with odd numbers have an opacity."""
    film = chest_phantom(96, seed=2 * patient + visit).astype(float)
    y, x = np.mgrid[:96, :96]
    top, left = np.random.default_rng(patient).uniform((34, 24), (56, 34))
    opacity = 90 * np.exp(-((y - top - visit) ** 2 + (x - left) ** 2) / 70)
    return Image.fromarray(np.clip(film + (patient % 2) * opacity, 0, 255).astype(np.uint8))


Path("images").mkdir()
rows = []
for patient in range(24):
    for visit in range(2):
        path = f"film{patient:02d}-{visit}.png"
        draw_film(patient, visit).save(Path("images") / path)
        rows.append({"path": path, "patient": f"p{patient:02d}", "opacity": patient % 2})
pd.DataFrame(rows).to_csv("labels.csv", index=False)

# %% [markdown]
# ## The run
#
# Both films of a patient stay on one side of the split. The test part is judged once, at the end. With `--dry-run` the
# command says what would be trained and how long a step takes, and writes nothing.

# %% language="bash"
# zoo finetune caid-resnet50.chestxray14-800 --task classify --table labels.csv --data images --label opacity \
#     --group patient --epochs 5 -o run 2>/dev/null

# %% [markdown]
# ## What the file says of itself
#
# `run/model.safetensors` alone is enough for all that follows.

# %% language="bash"
# zoo info run/model.safetensors | head -n 14

# %% [markdown]
# ## Predict
#
# Two new films, one without and one with an opacity.

# %%
Path("new").mkdir()
for patient in (100, 101):
    draw_film(patient, 0).save(f"new/film{patient}.png")

# %% language="bash"
# zoo predict run new -o predictions.csv 2>/dev/null
# cat predictions.csv

# %% [markdown]
# The same in a program:

# %%
predict = zoo.load_predictor("run")
predict("new/film101.png")

# %% [markdown]
# And the network itself, to go on with in a script of your own:

# %%
model = zoo.load_model("caid-resnet50", checkpoint="run/model.safetensors")
print(zoo.load_report(model))
