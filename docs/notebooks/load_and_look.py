# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Load and look
#
# A film becomes features, and features are looked at. The film is **drawn**: it shows how things are done, and no
# patient.

# %%
import matplotlib.pyplot as plt
import torch
from PIL import Image

import zoo
from zoo.commands.phantom import chest_phantom

Image.fromarray(chest_phantom(512)).save("chest.png")

# %% [markdown]
# ## What there is
#
# Names cost nothing: neither torch nor a file is loaded by these lines.

# %%
zoo.list_models("caid-*")

# %%
info = zoo.model_info("caid-resnet50")
print(info.name, "|", info.state, "|", info.trained_by, "|", info.bytes, "bytes")
print(info.notes)

# %% [markdown]
# ## From a film to features
#
# `load_model` finds the weights in the package, proves them by their digest, and loads them strictly. The transform
# that belongs to the weights makes the network's input; printing it shows its steps.

# %%
name = "caid-resnet50.chestxray14-800"
model, transform = zoo.load_model(name), zoo.load_transform(name)
film = transform("chest.png").unsqueeze(0)
with torch.no_grad():
    features = model(film)
print(transform)
print(tuple(film.shape), "->", tuple(features.shape))

# %% [markdown]
# What was loaded, adapted, made fresh or dropped, and from which file:

# %%
print(zoo.load_report(model))

# %% [markdown]
# ## What the network sees
#
# The maps of its stages, each as the first principal component over its positions. `forward_intermediates` is timm's,
# and every network of the zoo has it.

# %%
with torch.no_grad():
    maps = model.forward_intermediates(film, intermediates_only=True)
panels = {"input": film[0, 0]}
for number, stage in enumerate(maps):
    vectors = stage[0].flatten(1).T
    component = torch.linalg.svd(vectors - vectors.mean(0), full_matrices=False)[2][0]
    panels[f"stage {number}"] = ((vectors - vectors.mean(0)) @ component).view(stage.shape[2:])

figure, axes = plt.subplots(1, len(panels), figsize=(12, 2.6))
for axis, (title, panel) in zip(axes, panels.items(), strict=True):
    axis.imshow(panel, cmap="gray")
    axis.set(title=title, xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## The U-Net of the same weights
#
# It was trained to restore what a distortion took: here rectangles.

# %%
unet = zoo.load_model("caid-resnet50-unet.chestxray14-800")
cut = film.clone()
cut[..., 12:26, 14:30] = 0
cut[..., 36:48, 34:52] = 0
with torch.no_grad():
    restored = unet(cut)

figure, axes = plt.subplots(1, 3, figsize=(7, 2.6))
for axis, title, panel in zip(axes, ("film", "cut", "restored"), (film, cut, restored), strict=True):
    axis.imshow(panel[0, 0], cmap="gray", vmin=0, vmax=1)
    axis.set(title=title, xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## What is refused
#
# An image that cannot be what the network was trained on is an error, in the transform, with what to do.

# %%
try:
    transform(torch.rand(512, 512) * 255)
except zoo.errors.InputContractError as error:
    print(error)
