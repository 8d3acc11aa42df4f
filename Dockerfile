# The package with its extras on a GPU: docs/containers.md says how it is built and run.
# PyTorch's wheels bring CUDA's libraries with them. The base gives what lets the container see the driver.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}

ENV PATH=/opt/venv/bin:${PATH} \
    PYTHONUNBUFFERED=1 \
    UDA_SEG_CACHE=/cache \
    HF_HOME=/cache/huggingface

# git: a run's record names the state of the code that is mounted
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git python3 python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv

WORKDIR /opt/uda_seg
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
COPY conf conf
RUN python -m pip install --no-cache-dir --constraint constraints.txt ".[sweep,imagenet,video,serve,export,tensorboard]"

# Nothing that trains needs to be root. Both folders are for volumes: runs, and what is computed or downloaded once.
RUN useradd --create-home --uid 10001 uda \
    && mkdir --parents /work /cache \
    && chown uda:uda /work /cache
USER uda
WORKDIR /work

ENTRYPOINT ["python", "-m", "uda_seg.train"]
CMD ["--help"]
