# syntax=docker/dockerfile:1
#
#     docker build --target cpu --tag medssl-zoo:cpu .
#     docker build --tag medssl-zoo:cuda .
#     docker run --rm --gpus all --user "$(id -u)" -v "$PWD:/work" -v zoo-cache:/cache medssl-zoo:cuda \
#         embed caid-resnet50.chestxray14-800 films -o features.npz
#
# The driver is the host's; torch's wheels bring the rest of CUDA. What is fetched lies in the volume /cache.

ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /src
COPY . .
RUN python -m venv /opt/build \
    && /opt/build/bin/pip install "build==1.*" \
    && /opt/build/bin/python -m build --wheel --outdir /wheels .

FROM build AS install-cpu
RUN wheel=$(ls /wheels/*.whl) \
    && pip install "${wheel}[train]" --extra-index-url https://download.pytorch.org/whl/cpu

FROM build AS install-cuda
RUN wheel=$(ls /wheels/*.whl) \
    && pip install "${wheel}[train]"

FROM python:${PYTHON}-slim AS runtime
RUN useradd --create-home --uid 1000 zoo \
    && install -d -o zoo -m 1777 /cache /work
ENV PATH=/opt/venv/bin:$PATH \
    ZOO_HOME=/cache \
    HOME=/tmp \
    PYTHONUNBUFFERED=1
USER zoo
WORKDIR /work
VOLUME /cache
ENTRYPOINT ["zoo"]
CMD ["--help"]

FROM runtime AS cpu
COPY --from=install-cpu /opt/venv /opt/venv

FROM runtime AS cuda
COPY --from=install-cuda /opt/venv /opt/venv
