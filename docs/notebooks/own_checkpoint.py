# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Bring your own checkpoint
#
# A file from a training script, from a colleague, or from authors who answered your mail. Here it is made of the
# weights in the package, in the form in which contrastive training leaves it.

# %%
import torch

import zoo

pretrained = zoo.load_model("caid-resnet50.chestxray14-800").state_dict()
torch.save(
    {
        "epoch": 99,
        "arch": "resnet50",
        "state_dict": {
            **{f"module.encoder_q.{name}": tensor for name, tensor in pretrained.items()},
            **{f"module.encoder_k.{name}": tensor for name, tensor in pretrained.items()},
            "module.queue": torch.randn(128, 1024),
        },
    },
    "colleague.pth",
)

# %% [markdown]
# ## Look into it
#
# `inspect_checkpoint` runs nothing of the file. It says what is in it, which models it fits, and the line that loads
# it.

# %%
print(zoo.inspect_checkpoint("colleague.pth"))

# %% [markdown]
# ## Load it
#
# Prefixes, the key network and the queue are no obstacle; the report says what became of them.

# %%
model = zoo.load_model("caid-resnet50", checkpoint="colleague.pth")
print(zoo.load_report(model))

# %% [markdown]
# With a head of your own, and for grey images of one channel:

# %%
classifier = zoo.load_model("caid-resnet50", checkpoint="colleague.pth", num_classes=3, in_channels=1)
print(zoo.load_report(classifier))

# %% [markdown]
# ## A file that does not fit
#
# Half of a network is not loaded in silence. Here a stage is missing:

# %%
torch.save({name: tensor for name, tensor in pretrained.items() if not name.startswith("layer3")}, "half.pth")
try:
    zoo.load_model("caid-resnet50", checkpoint="half.pth")
except zoo.errors.CheckpointMismatchError as error:
    print(error)

# %% [markdown]
# ## A file that wants code run
#
# A pickle is a program. What a file would have to import is named, and refused.

# %%
import pickle
from fractions import Fraction

with open("objects.pth", "wb") as file:
    pickle.dump({"state_dict": {}, "config": Fraction(1, 2)}, file)
try:
    zoo.load_model("caid-resnet50", checkpoint="objects.pth")
except zoo.errors.ZooError as error:
    print(type(error).__name__, error, sep=": ")

# %% [markdown]
# ## Give it a name
#
# From then on `load_model("caid-resnet50.colleague")` finds it, on this machine; `zoo remove` undoes that.

# %% language="bash"
# zoo import caid-resnet50.colleague colleague.pth
# zoo list "*.colleague"
