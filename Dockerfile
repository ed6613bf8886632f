# The page of `nextscale serve` on port 7860, and the command line.
#
#   docker build -t nextscale .
#   docker run -p 7860:7860 nextscale
#   docker run --rm -i nextscale nextscale upscale -i - -o - < photo.jpg > photo_x4.jpg
#   docker run --rm -v "$PWD:/photos" -u "$(id -u):$(id -g)" nextscale nextscale upscale /photos/holiday -o /photos/large
#
# On a GPU (torch's wheels bring CUDA's libraries, the host its driver):
#
#   docker build -t nextscale:cuda --build-arg BASE=nvidia/cuda:12.8.1-base-ubuntu24.04 \
#     --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
#   docker run --gpus all -p 7860:7860 nextscale:cuda
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The CUDA base has no Python; the other has.
# hadolint ignore=DL3008
RUN command -v python3 >/dev/null || \
    { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }

RUN python3 -m venv /opt/nextscale && useradd --create-home --shell /usr/sbin/nologin visitor
ENV PATH=/opt/nextscale/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1

# torch first: it is by far the largest, and changes least.
WORKDIR /src
COPY constraints.txt ./
# hadolint ignore=DL3013
RUN pip install -c constraints.txt torch --index-url "${TORCH_INDEX}"

COPY pyproject.toml README.md LICENSE NOTICE ./
COPY examples ./examples
COPY nextscale ./nextscale
RUN pip install -c constraints.txt '.[web]'

USER visitor
WORKDIR /home/visitor
EXPOSE 7860
# Of the page; a container that runs another command has none to look at.
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
  CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
CMD ["nextscale", "serve", "--host", "0.0.0.0"]
