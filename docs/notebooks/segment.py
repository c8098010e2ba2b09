# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Segment whole volumes
#
# A short-axis stack of a **drawn** heart, segmented by weights that ship with the package, `glcl-unet.phantom`. They
# were trained by this zoo on such drawings and are of no use on real MRI; the path is the same for weights that are.

# %%
import matplotlib.pyplot as plt
import nibabel
import numpy as np

# %% language="bash"
# python -m zoo.entries.glcl.phantom --out hearts --subjects 1 --seed 7 2>/dev/null
# find hearts -name "*.nii.gz" | sort

# %% [markdown]
# ## Does it fit the network?

# %% language="bash"
# zoo doctor hearts/patient001/patient001_frame01.nii.gz --for glcl-unet.phantom

# %% [markdown]
# ## Labels, on the grid of the scan
#
# The network takes slices of a fixed size; the labels are brought back to the grid of the file.

# %% language="bash"
# zoo segment glcl-unet.phantom hearts/patient001/patient001_frame01.nii.gz -o labels
# ls labels

# %%
scan = nibabel.load("hearts/patient001/patient001_frame01.nii.gz")
truth = np.asarray(nibabel.load("hearts/patient001/patient001_frame01_gt.nii.gz").dataobj)
labels = nibabel.load("labels/patient001_frame01_labels.nii.gz")
found = np.asarray(labels.dataobj)
assert found.shape == scan.shape
assert np.allclose(labels.affine, scan.affine)

for value, structure in {1: "right ventricle", 2: "myocardium", 3: "left ventricle"}.items():
    dice = 2 * ((found == value) & (truth == value)).sum() / ((found == value).sum() + (truth == value).sum())
    print(f"{structure:<16} Dice {dice:.2f}")

# %%
values = np.asarray(scan.dataobj)
slices = np.linspace(1, scan.shape[2] - 3, 3).astype(int)
figure, axes = plt.subplots(3, 3, figsize=(7, 7))
for row, index in zip(axes, slices, strict=True):
    for axis, title, overlay in zip(row, ("scan", "truth", "found"), (None, truth, found), strict=True):
        axis.imshow(values[..., index].T, cmap="gray")
        if overlay is not None:
            shown = np.ma.masked_equal(overlay[..., index].T, 0)
            axis.imshow(shown, cmap="viridis", vmin=1, vmax=3, alpha=0.6, interpolation="nearest")
        axis.set(title=f"{title}, slice {index}", xticks=[], yticks=[])
figure.tight_layout()

# %% [markdown]
# ## With your own labels
#
# `zoo finetune NAME --task segment --masks FOLDER` trains any U-Net of the zoo on your structures, and `zoo predict`
# writes labels as above. Networks whose head is untrained are refused by `zoo segment`, which says so:

# %% language="bash"
# zoo segment voco-swinunetr-b hearts/patient001/patient001_frame01.nii.gz -o nothing 2>&1 || true
