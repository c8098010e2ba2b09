# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A cohort to features
#
# Forty patients with two films each, half of them with an opacity in the right lung. All films are **drawn**: what
# comes out shows how things are done, and says nothing about patients or about the network.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from PIL import Image

import zoo
from zoo.commands.phantom import chest_phantom


def draw_film(patient: int, visit: int) -> Image.Image:
    """A drawn film of 128 pixels; patients with odd numbers have an opacity."""
    film = chest_phantom(128, seed=2 * patient + visit).astype(float)
    y, x = np.mgrid[:128, :128]
    top, left = np.random.default_rng(patient).uniform((45, 32), (75, 46))
    opacity = 70 * np.exp(-((y - top - visit) ** 2 + (x - left) ** 2) / 90)
    return Image.fromarray(np.clip(film + (patient % 2) * opacity, 0, 255).astype(np.uint8))


rows = []
for patient in range(40):
    for visit in range(2):
        path = f"film{patient:02d}-{visit}.png"
        draw_film(patient, visit).save(path)
        rows.append({"path": path, "patient": f"p{patient:02d}", "opacity": patient % 2})
pd.DataFrame(rows).to_csv("films.csv", index=False)

figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for axis, row in zip(axes, rows[:4], strict=True):
    axis.imshow(Image.open(row["path"]), cmap="gray")
    axis.set(title=f"{row['patient']}: {row['opacity']}", xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## Features
#
# The table's other columns are carried along.

# %% language="bash"
# zoo embed caid-resnet50.chestxray14-800 --list films.csv -o features

# %% [markdown]
# Run again, the command goes on where it was, which is here the end:

# %% language="bash"
# zoo embed caid-resnet50.chestxray14-800 --list films.csv -o features
# ls features

# %%
features, table = zoo.read_features("features")
print(features.shape, features.dtype)
labels = table["opacity"].astype(int)
table.head(3)

# %% [markdown]
# ## Do the features tell the label?
#
# A linear model on frozen features, cross-validated **by patient**, beside what needs no trained network: the same
# network with random weights, and a few averages of the film itself. `zoo probe` does this with intervals and a
# few-label curve.

# %%
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

transform = zoo.load_transform("caid-resnet50.chestxray14-800")
inputs = torch.stack([transform(path) for path in table["path"]])
torch.manual_seed(0)
untrained = zoo.load_model("caid-resnet50", pretrained=False)
with torch.no_grad():
    random = untrained(inputs).numpy()
averages = torch.nn.functional.adaptive_avg_pool2d(inputs[:, :1], 16).flatten(1).numpy()


def auroc(values: np.ndarray) -> float:
    """AUROC of films that were held out, all films of a patient together."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
    splits = list(folds.split(values, labels, table["patient"]))
    scores = cross_val_predict(model, values, labels, cv=splits, method="decision_function")
    return roc_auc_score(labels, scores)


for title, values in {"chestxray14-800": features, "random weights": random, "16 x 16 averages": averages}.items():
    print(f"{title:<17} AUROC {auroc(values):.2f}")

# %% [markdown]
# A bright spot on a drawn film is told without any pre-training, as the two rows below the first show: that is what
# they are there for. Make the same comparison on images of your own before you believe in a network.
#
# ## A look at them

# %%
centred = features - features.mean(0)
places = centred @ np.linalg.svd(centred, full_matrices=False)[2][:2].T
for label, marker in ((0, "o"), (1, "^")):
    chosen = labels == label
    plt.scatter(*places[chosen].T, marker=marker, label=f"opacity {label}")
plt.xlabel("first principal component")
plt.ylabel("second")
_ = plt.legend()
